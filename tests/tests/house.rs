//! The whole pipeline, its plans, and the rules of the house.

mod candle;
mod folders;
mod hub;
mod paper;
mod plans;
mod programs;
mod smoke;
mod tidy;
