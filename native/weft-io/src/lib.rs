//! The machine under weft's data path: buffers, the completion driver (io_uring, or epoll with libaio), pools of
//! replicas in a directory, and framed TCP connections.
//!
//! Must always hold:
//! * nothing that may block (open, create, fallocate, fsync of a directory, rename) runs on a reactor's thread;
//! * bytes from a disk or a peer are parsed before they are trusted and never panic;
//! * every buffer that is given to a [`driver::Driver`] comes back with its completion, also on error.

pub mod blocking;
pub mod buffer;
mod clones;
mod copies;
mod doubt;
pub mod driver;
pub mod file_pool;
pub mod files;
pub mod identity;
mod images;
pub mod mac;
pub mod memory;
pub mod pool_dir;
pub mod reflink;
mod segment;
pub mod sidecar;
mod store;
pub mod stream;
pub mod tcp;
pub mod thin;
pub mod tls;

#[cfg(test)]
mod testing;
