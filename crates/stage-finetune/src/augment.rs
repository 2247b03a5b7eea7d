//! Random shifts, crops and mirror images of 8-bit pixels.

use game::Key;

use crate::Augment;

impl Augment {
    /// Height and width of what leaves the augmentation, given those of what enters.
    pub(crate) fn size(&self, height: usize, width: usize) -> (usize, usize) {
        self.random_crop.map_or((height, width), |side| (side as usize, side as usize))
    }

    /// A training image: the window of an image `(3, height, width)` that `key` draws, as `x / 255`.
    ///
    /// As torchvision's `RandomCrop(size, padding)` and `RandomHorizontalFlip`: every window of the padded image is
    /// equally likely, and black outside the image.
    pub(crate) fn draw(&self, pixels: &[u8], (height, width): (usize, usize), key: Key, out: &mut [f32]) {
        let (rows, columns) = self.size(height, width);
        let padding = self.crop_padding as usize;
        let place = |key: Key, from: usize, to: usize| {
            key.below((from + 2 * padding - to) as u64 + 1) as isize - padding as isize
        };
        let (top, left) = (place(key.at(0), height, rows), place(key.at(1), width, columns));
        let mirror = self.flip && key.at(2).unit() < 0.5;
        window(pixels, (height, width), (top, left), mirror, (rows, columns), out);
    }

    /// A validation image: the window in the middle.
    pub(crate) fn centre(&self, pixels: &[u8], (height, width): (usize, usize), out: &mut [f32]) {
        let (rows, columns) = self.size(height, width);
        // torchvision's CenterCrop rounds halves to even.
        let middle = |from: usize, to: usize| ((from - to) as f64 / 2.0).round_ties_even() as isize;
        window(pixels, (height, width), (middle(height, rows), middle(width, columns)), false, (rows, columns), out);
    }
}

/// Copies the window whose corner is `(top, left)` to `out` as `x / 255`; black where it leaves the image.
fn window(
    pixels: &[u8],
    (height, width): (usize, usize),
    (top, left): (isize, isize),
    mirror: bool,
    (rows, columns): (usize, usize),
    out: &mut [f32],
) {
    for (line, out) in out.chunks_exact_mut(columns).enumerate() {
        let (channel, row) = (line / rows, (line % rows) as isize + top);
        if row < 0 || row >= height as isize {
            out.fill(0.0);
            continue;
        }
        let source = &pixels[(channel * height + row as usize) * width..][..width];
        for (column, out) in out.iter_mut().enumerate() {
            let column = if mirror { columns - 1 - column } else { column } as isize + left;
            let pixel = usize::try_from(column).ok().and_then(|column| source.get(column));
            *out = pixel.map_or(0.0, |&pixel| f32::from(pixel) / 255.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three channels of 2 x 3 pixels; the value tells the place.
    const IMAGE: [u8; 18] = [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112, 200, 201, 202, 210, 211, 212];

    fn bytes(out: &[f32]) -> Vec<u8> {
        out.iter().map(|x| (x * 255.0).round() as u8).collect()
    }

    #[test]
    fn without_settings_an_image_passes_unchanged() {
        let mut out = [0.0; 18];
        Augment::default().draw(&IMAGE, (2, 3), Key::root(1), &mut out);
        assert_eq!(bytes(&out), IMAGE);
        assert_eq!(out[1], 1.0 / 255.0);
    }

    #[test]
    fn a_window_shifts_mirrors_and_fills_with_black() {
        let mut out = [0.0; 18];
        window(&IMAGE, (2, 3), (-1, 1), true, (2, 3), &mut out);
        assert_eq!(bytes(&out)[..6], [0, 0, 0, 0, 2, 1]);
        assert_eq!(bytes(&out)[12..], [0, 0, 0, 0, 202, 201]);
    }

    #[test]
    fn every_shift_and_both_sides_are_drawn_equally_often() {
        // One bright pixel in the middle of 5 x 5: where it lands tells the draw (up to the mirror).
        let mut pixels = [0; 75];
        pixels[12] = 255;
        let augment = Augment { crop_padding: 2, flip: true, random_crop: None };
        let mut counts = [0u32; 25];
        let mut out = [0.0; 75];
        for i in 0..25_000 {
            augment.draw(&pixels, (5, 5), Key::root(3).at(i), &mut out);
            counts[out[..25].iter().position(|&x| x > 0.0).expect("never shifted out")] += 1;
        }
        assert!(counts.iter().all(|&n| (f64::from(n) - 1000.0).abs() < 5.0 * 31.0), "{counts:?}");
        let mut mirrored = 0;
        let flip = Augment { flip: true, ..Augment::default() };
        let mut out = [0.0; 18];
        for i in 0..1000 {
            flip.draw(&IMAGE, (2, 3), Key::root(4).at(i), &mut out);
            mirrored += u32::from(bytes(&out)[0] == 2);
        }
        assert!((f64::from(mirrored) - 500.0).abs() < 5.0 * 15.8, "{mirrored}");
    }

    #[test]
    fn crops_stay_inside_and_validation_sees_the_middle() {
        let augment = Augment { random_crop: Some(2), ..Augment::default() };
        let mut out = [0.0; 12];
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..50 {
            augment.draw(&IMAGE, (2, 3), Key::root(5).at(i), &mut out);
            seen.insert(bytes(&out)[..4].to_vec());
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [[0, 1, 10, 11], [1, 2, 11, 12]]);
        augment.centre(&IMAGE, (2, 3), &mut out);
        assert_eq!(bytes(&out)[..4], [0, 1, 10, 11]);
    }
}
