//! Anonymous memory by the page: the slab and the buffer rings.

use std::io;
use std::ptr::NonNull;

/// A private anonymous mapping, page-aligned, zeroed, resident only where touched.
///
/// Unmapped on drop; whoever registered it with a ring must drop the ring first.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    len: usize,
}

impl Pages {
    /// Maps `len` bytes (rounded up to whole pages by the kernel).
    pub fn map(len: usize) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing else.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("mmap never returns page 0 unasked");
        Ok(Self { base, len })
    }

    /// First byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped; never true.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: base and len are exactly the mapping that this value owns, and it is not used again.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
