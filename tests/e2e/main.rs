//! End-to-end tests: the real binary, real sockets, loopback only.
//!
//! One module per family of cases; a number in a test's name is that of its case, the rest says what must
//! hold. Every test starts its own process on free ports and
//! ends with a leak check, so that they run side by side in any order.
//!
//! A case that this machine cannot run prints `skipped: CASE: reason` on stderr and passes;
//! `cargo test --test e2e 2>&1 | grep ^skipped` lists them all.
//!
//! Sizes that a person may want larger come from the environment:
//!
//! | variable | what | default |
//! |---|---|---|
//! | `CORELAY_SEED` | the seed of the fuzz test, to replay a failure | from the clock, printed |
//! | `CORELAY_FUZZ_STEPS` | steps of the fuzz test | 4,000 |
//! | `CORELAY_E2E_MOVER` | `relay.mover` of every test that does not choose: copy, splice or auto | the default |
//! | `CORELAY_E2E_BULK_MIB` | MiB each way of the integrity test | 1,024 |
//! | `CORELAY_E2E_SHORT_CONNECTIONS` | short connections of the leak tests | 10,000 |
//! | `CORELAY_E2E_STALLED_MIB` | MiB that a server tries to send to a client that never reads | 10,240 |
//! | `CORELAY_E2E_IDLE_CONNECTIONS` | idle connections | 2,000 |
//! | `CORELAY_E2E_SLOW_READERS` | slow readers | 400 |
//! | `CORELAY_E2E_PAUSED_CONNECTIONS` | connections that pause | 200 |
//! | `CORELAY_E2E_TRANSFERS` | transfers in flight at SIGTERM | 1,000 |

mod accepting;
mod admission;
mod backpressure;
mod balancing;
mod bandwidth;
mod canary;
mod checks;
mod closing;
mod data;
mod dialling;
mod fast_open;
mod faults;
mod fuzz;
mod handoff;
mod health;
mod integrity;
mod lifecycle;
mod limits;
mod migration;
mod names;
mod observe;
mod proxy_protocol;
mod routing;
mod source;
mod splicing;
mod starting;
mod stop_listening;
mod support;
mod timeouts;
mod zero_copy;
