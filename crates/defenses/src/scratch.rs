//! Buffers that a thread keeps between images.

use std::any::Any;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

thread_local! {
    static SHELF: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// A vector on loan from the thread, which keeps its memory for the next one to ask for the same type.
///
/// Fresh memory costs a page fault every 4 KiB, more than what most defenses do with it.
#[expect(clippy::box_collection, reason = "the shelf holds boxes: none is made or opened")]
pub struct Scratch<T: 'static>(Option<Box<Vec<T>>>);

impl<T: Clone + 'static> Scratch<T> {
    /// An empty vector.
    pub fn empty() -> Self {
        let mut buffer = Self::kept();
        buffer.clear();
        buffer
    }

    fn kept() -> Self {
        let kept = SHELF.with_borrow_mut(|shelf| {
            let place = shelf.iter().rposition(|buffer| buffer.is::<Vec<T>>())?;
            shelf.swap_remove(place).downcast::<Vec<T>>().ok()
        });
        Self(Some(kept.unwrap_or_default()))
    }

    /// `len` elements, each `value` or what an earlier loan left: for those who write before they read.
    pub fn some(value: T, len: usize) -> Self {
        let mut buffer = Self::kept();
        buffer.resize(len, value);
        buffer
    }

    /// `len` times `value`.
    pub fn of(value: T, len: usize) -> Self {
        let mut buffer = Self::empty();
        buffer.resize(len, value);
        buffer
    }
}

impl<T> Deref for Scratch<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        self.0.as_ref().expect("kept until dropped")
    }
}

impl<T> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        self.0.as_mut().expect("kept until dropped")
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        if let Some(buffer) = self.0.take() {
            // A thread that is ending has no shelf any more.
            let _ = SHELF.try_with(|shelf| shelf.borrow_mut().push(buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_cleared_and_two_loans_are_two_buffers() {
        let first = {
            let mut one = Scratch::of(7u8, 1000);
            one[3] = 9;
            one.as_ptr()
        };
        let (one, other) = (Scratch::of(0u8, 500), Scratch::of(1u8, 500));
        assert_eq!(one.as_ptr(), first);
        assert_ne!(one.as_ptr(), other.as_ptr());
        assert!(one.iter().all(|&x| x == 0) && other.iter().all(|&x| x == 1));
        assert!(Scratch::<u16>::empty().is_empty());
        drop(one);
        assert_eq!(Scratch::some(3u8, 501)[499..], [0, 3]);
    }
}
