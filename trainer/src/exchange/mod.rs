//! Checkpoints from and to other programs.

mod names;
mod pickle;
mod pth;
mod torch_file;
