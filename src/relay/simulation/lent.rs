//! Zero-copy sends: the simulated kernel reads what it took until it returns the buffer, late and in any
//! order.

use super::kernel::World;

/// Bytes that a zero-copy send took and the kernel reads until it returns their buffer.
pub(super) struct Lent {
    pub id: u16,
    pub from: usize,
    pub bytes: Vec<u8>,
}

impl World {
    /// The kernel reads a lent buffer, perhaps for the last time.
    pub(super) fn read_lent(&mut self) {
        if self.lent.is_empty() {
            return;
        }
        let index = self.random.below(self.lent.len() as u64) as usize;
        let Lent { id, from, bytes } = &self.lent[index];
        let now = &self.pool.kernel_reads(*id)[*from..*from + bytes.len()];
        assert_eq!(now, bytes, "a lent buffer changed");
        if self.random.chance(30) {
            let lent = self.lent.swap_remove(index);
            self.pool.returned(lent.id);
        }
    }
}
