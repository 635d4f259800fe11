//! The two rings of a core: monoio's, and the one that relays.

use std::sync::{Mutex, PoisonError};

use super::StartError;
use crate::ring::{RelayRing, RingOptions};
use crate::sys::fd;

/// Entries of monoio's ring: accept readiness, dials in progress, the mailbox. A pass that needs
/// more submits in between.
const MONOIO_ENTRIES: u32 = 256;

type Runtime = monoio::Runtime<monoio::IoUringDriver>;

/// The two rings of a core.
pub(super) struct Rings {
    pub(super) runtime: Runtime,
    pub(super) monoio_ring: i32,
    pub(super) relay_ring: RelayRing,
}

impl Rings {
    /// Builds monoio's runtime, finds its ring, and builds the relay ring.
    pub(super) fn build(options: RingOptions) -> Result<Self, StartError> {
        // Every ring of every core is made under this lock: while one core looks for its runtime's
        // ring, another's would be new as well.
        static BUILDING: Mutex<()> = Mutex::new(());
        let _alone = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let before = fd::io_uring_fds().map_err(StartError::Runtime)?;
        let mut ring = io_uring_06::IoUring::builder();
        // COOP_TASKRUN spares the interrupts; DEFER_TASKRUN would not wake the relay ring that polls
        // this one.
        ring.setup_coop_taskrun().setup_single_issuer();
        let runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
            .with_entries(MONOIO_ENTRIES)
            .uring_builder(ring)
            .build()
            .map_err(StartError::Runtime)?;
        let mut new = fd::io_uring_fds().map_err(StartError::Runtime)?;
        new.retain(|fd| !before.contains(fd));
        let [monoio_ring] = new[..] else {
            return Err(StartError::RingNotFound(new.len()));
        };
        let relay_ring = RelayRing::new(options)?;
        Ok(Self {
            runtime,
            monoio_ring,
            relay_ring,
        })
    }
}
