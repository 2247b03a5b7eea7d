//! The whole pipeline, its plans, and the rules of the house.

mod folders;
mod hub;
mod paper;
mod plans;
mod smoke;
mod tidy;
