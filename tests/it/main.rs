//! The built program from outside, one module for each behaviour.

mod cli;
mod convert;
mod real_data;
mod support;
mod train;
mod verify;
