//! Any program as a victim: the protocol `victim` 1.0, from the side that asks.
//!
//! A [`Client`] starts a program from its parameters ([`game::Program`]) and talks to it over two private pipes, by the
//! messages that `PROTOCOL.md` beside this crate defines. What the program says of itself first is its [`Hello`]. A client
//! asks for logits ([`Client::logits`]), for gradients of a loss that stays here ([`Client::gradient`]), and, of a
//! transformation, for images ([`Client::apply`]) and their gradients ([`Client::pullback`]). A program that dies, hangs or
//! answers nonsense is started again once, and the request repeated: rows are pure functions of image and key. The second
//! failure is a [`Fault`], which says what happened and the program's last words.
//!
//! [`Network`] is a client as [`game::Classifier`], [`Transformation`] one as [`game::Defense`]: nothing else in the
//! product knows a program from a network or a defense of its own.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use victim::{Client, Network, Options};
//! let program = game::Program { command: vec!["python3".into(), "mine.py".into()], ..Default::default() };
//! let client = Arc::new(Client::start(&program, &Options::from_env(None)?)?);
//! println!("{:?}", client.hello());
//! let network = Network::new(client)?; // a `game::Classifier`
//! # Ok(())
//! # }
//! ```

mod client;
mod files;
mod hello;
mod network;
mod process;
mod transformation;
mod wire;

pub use client::{Answer, Client, Options, Reduce};
pub use files::{FileFault, digests, resolve, verify};
pub use hello::{Draws, Hello, VERSION};
pub use network::Network;
pub use process::{Fault, Kind};
pub use transformation::Transformation;
pub use wire::{Array, Message};

/// Result of asking a program.
pub type Result<T, E = Fault> = std::result::Result<T, E>;
