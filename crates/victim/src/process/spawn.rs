//! Starting programs from one thread that lives as long as this process.
//!
//! Linux ends a program whose parent is gone when the *thread* that started it is gone, and threads come and go.

use std::{
    io,
    process::{Child, Command},
    sync::{
        Mutex, OnceLock,
        mpsc::{Sender, channel},
    },
    thread,
};

type Order = (Command, Sender<io::Result<Child>>);

/// Starts a command.
pub fn spawn(command: Command) -> io::Result<Child> {
    static ORDERS: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, taken) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in taken {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, answered) = channel();
    let gone = || io::Error::other("the thread that starts programs is gone");
    orders.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send((command, answer)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}
