//! One direction of a session, as a pure state machine: no socket, no buffer, no clock.
//!
//! ```text
//!            receive ─────────> bytes queued ──────────> delivered
//!   source:  Open ──FIN──> Ended        └─ peer full ─> blocked ─┘
//!              └───RST──> Failed
//!   Ended and nothing queued ──> FIN is passed on, the direction is finished
//!   discarding: whatever still arrives is thrown away
//! ```
//!
//! The engine reports what happened and asks [`Direction::next_step`] what to do. The rules that live
//! here: receive only when everything received was delivered, so that a direction never needs a
//! second buffer to go on; multishot only for small messages whose sends do not wait; FIN only after the last
//! byte; with a limited bandwidth, nothing is received that was not granted.

use super::bulk::{Bulk, MoverChoice};
use crate::outcome::MoverKind;
use crate::ring::{Group, Shots};

/// Small receives in a row, each delivered at once, after which a receive becomes multishot.
///
/// A multishot receive takes as many buffers as there are bytes, whoever asked it to stop, so it
/// is kept away from streams that fill whole buffers.
const MULTISHOT_AFTER: u8 = 2;
/// Receives in a row, each delivered at once, after which a direction that had to wait for its
/// peer leaves the slow group.
const TRUSTED_AFTER: u8 = 8;

/// What the source did last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It may send more.
    Open,
    /// It sent FIN.
    Ended,
    /// It is gone without FIN.
    Failed,
}

/// What operation on the source is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// A receive.
    Bytes,
    /// A poll.
    Readiness,
}

/// The operation on the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receive {
    Off,
    On(Shots),
    /// A poll, for the splice mover.
    Polling,
    Cancelling,
    /// No buffer was left: armed again when one comes back.
    Waiting,
    /// The bandwidth is used up: goes on when what was booked is there.
    HeldBack,
}

/// What the engine should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing until something happens.
    Rest,
    /// Arm a receive.
    Receive(Group, Shots),
    /// Cancel the receive.
    StopReceiving,
    /// Poll for bytes.
    AwaitReadable,
    /// Ask for bandwidth: the source has something.
    Claim,
    /// Receive what was granted, into one buffer.
    ReceiveGranted(Group),
    /// Fill a pipe.
    Fill,
    /// Deliver what is queued, or in the pipe.
    Send,
    /// Send FIN to the destination.
    PassFin,
}

/// State of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Direction {
    source: Source,
    receive: Receive,
    /// A send is in the ring.
    sending: bool,
    /// The destination was full: waiting for room.
    blocked: bool,
    fin_passed: bool,
    discarding: bool,
    slow: bool,
    /// Receives in a row, each delivered at once.
    trusted: u8,
    /// A fill is worth a try, or a claim.
    readable: bool,
    /// Its bandwidth is limited: it waits for bytes first, and takes no more than is granted.
    limited: bool,
    /// Of what was granted, some is left.
    granted: bool,
    streak: u8,
    queued_bytes: u32,
    bulk: Bulk,
}

impl Direction {
    /// A new session's direction.
    pub fn new(choice: MoverChoice) -> Self {
        Self {
            source: Source::Open,
            receive: Receive::Off,
            sending: false,
            blocked: false,
            fin_passed: false,
            discarding: false,
            slow: false,
            trusted: 0,
            readable: false,
            limited: false,
            granted: false,
            streak: 0,
            queued_bytes: 0,
            bulk: Bulk::new(choice),
        }
    }

    /// Whether from the start nothing is received that was not granted.
    pub fn limited(self, limited: bool) -> Self {
        Self { limited, ..self }
    }

    /// What to do now. Each answer but `Rest` must be carried out and takes effect at once.
    pub fn next_step(&mut self) -> Step {
        let must_stop = self.blocked || self.is_splicing();
        if must_stop && self.receive == Receive::On(Shots::Multi) {
            self.receive = Receive::Cancelling;
            return Step::StopReceiving;
        }
        if self.blocked || self.sending {
            return Step::Rest;
        }
        if self.queued_bytes > 0 {
            return Step::Send;
        }
        match self.source {
            Source::Ended if !self.fin_passed && !self.discarding => {
                self.fin_passed = true;
                Step::PassFin
            }
            Source::Open
                if self.receive == Receive::Off && (self.is_splicing() || self.is_limited()) =>
            {
                self.next_take()
            }
            Source::Open if self.receive == Receive::Off => {
                let shots = self.shots();
                self.receive = Receive::On(shots);
                Step::Receive(self.group(), shots)
            }
            _ => Step::Rest,
        }
    }

    /// The next step of a direction that looks whether there are bytes before it takes them.
    fn next_take(&mut self) -> Step {
        if !self.readable {
            self.receive = Receive::Polling;
            return Step::AwaitReadable;
        }
        if self.is_limited() && !self.granted {
            return Step::Claim;
        }
        self.readable = false;
        if self.is_splicing() {
            return Step::Fill;
        }
        self.receive = Receive::On(Shots::Single);
        Step::ReceiveGranted(self.group())
    }

    /// Whether nothing stands against receiving into a buffer.
    pub fn wants_buffer(&self) -> bool {
        self.source == Source::Open && !self.blocked && !self.is_splicing()
    }

    /// Whether the splice mover takes what comes next.
    fn is_splicing(&self) -> bool {
        self.bulk.mover() == MoverKind::Splice && !self.discarding
    }

    /// Whether what it receives must be granted. What is thrown away costs nothing.
    pub fn is_limited(&self) -> bool {
        self.limited && !self.discarding
    }

    /// The policy that chooses the mover.
    pub fn bulk(&mut self) -> &mut Bulk {
        &mut self.bulk
    }

    /// A fill is worth a try: the splice mover takes over, or its turn was over too early.
    pub fn fill_next(&mut self) {
        // What is to be granted must be known to be there.
        self.readable = !self.is_limited() || self.granted;
    }

    /// What it asked for may be received.
    pub fn on_granted(&mut self) {
        self.granted = true;
    }

    /// Something was received of what was granted. If some of it is left, it is there to be received.
    pub fn on_spent(&mut self, is_left: bool) {
        self.granted = is_left;
        self.readable = is_left;
    }

    /// What it asked for is to come later.
    pub fn on_held_back(&mut self) {
        debug_assert_eq!(self.receive, Receive::Off);
        self.receive = Receive::HeldBack;
    }

    /// It has come. Returns whether it was waited for.
    pub fn on_let_go(&mut self) -> bool {
        let is_held_back = self.is_held_back();
        if is_held_back {
            self.receive = Receive::Off;
        }
        is_held_back
    }

    /// Whether it waits for bandwidth, though there is something to receive.
    pub fn is_held_back(&self) -> bool {
        self.receive == Receive::HeldBack
    }

    /// The poll for bytes completed.
    pub fn on_readable(&mut self) {
        self.receive = Receive::Off;
        self.readable = true;
    }

    /// A pipe was filled with `len` bytes; `more` may be there at once.
    pub fn on_filled(&mut self, len: u32, more: bool) {
        debug_assert_eq!(self.queued_bytes, 0, "only an empty pipe is filled");
        self.queued_bytes = len;
        self.readable = more;
    }

    /// The group that the next receive takes from.
    pub fn group(&self) -> Group {
        if self.slow { Group::Slow } else { Group::Fast }
    }

    fn shots(&self) -> Shots {
        if !self.slow && !self.discarding && self.streak >= MULTISHOT_AFTER {
            Shots::Multi
        } else {
            Shots::Single
        }
    }

    /// One receive completed with `len` bytes; `full` if they filled the buffer. Returns whether
    /// they are to be delivered; if not, they are to be thrown away.
    pub fn on_received(&mut self, len: u32, full: bool, more: bool) -> bool {
        self.on_receive_completed(more);
        if self.discarding {
            return false;
        }
        self.queued_bytes += len;
        self.trusted = self.trusted.saturating_add(1);
        self.streak = if full {
            0
        } else {
            self.streak.saturating_add(1)
        };
        true
    }

    /// The stream began to fill whole buffers: a multishot receive must end.
    pub fn must_leave_multishot(&mut self) -> bool {
        let leave = self.streak == 0 && self.receive == Receive::On(Shots::Multi);
        if leave {
            self.receive = Receive::Cancelling;
        }
        leave
    }

    /// A receive completed, whatever its result.
    pub fn on_receive_completed(&mut self, more: bool) {
        if !more {
            self.receive = Receive::Off;
        }
    }

    /// No buffer was left; the engine queued the direction for one.
    pub fn on_no_buffer(&mut self) {
        debug_assert_eq!(self.receive, Receive::Off);
        self.receive = Receive::Waiting;
        self.streak = 0;
    }

    /// A buffer came back: the wait is over.
    pub fn on_buffer_back(&mut self) {
        if self.receive == Receive::Waiting {
            self.receive = Receive::Off;
        }
    }

    /// The source sent FIN.
    pub fn on_fin(&mut self) {
        self.source = Source::Ended;
    }

    /// The source is gone without FIN, and everything that it sent was received.
    pub fn on_failed(&mut self) {
        self.source = Source::Failed;
    }

    /// The destination took `len` bytes.
    pub fn on_sent(&mut self, len: u32) {
        debug_assert!(
            len <= self.queued_bytes,
            "sent {len} of {}",
            self.queued_bytes
        );
        self.queued_bytes -= len;
        if self.slow && self.queued_bytes == 0 && !self.blocked && self.trusted >= TRUSTED_AFTER {
            self.slow = false;
        }
    }

    /// The head of the queue was given to the ring to send.
    pub fn on_sending(&mut self) {
        debug_assert!(!self.sending, "two sends in flight may reorder");
        self.sending = true;
    }

    /// The ring's send completed.
    pub fn on_send_completed(&mut self) {
        self.sending = false;
    }

    /// Whether a send is in the ring.
    pub fn is_sending(&self) -> bool {
        self.sending
    }

    /// Whether arriving bytes are thrown away.
    pub fn is_discarding(&self) -> bool {
        self.discarding
    }

    /// The destination was full: the engine waits for room.
    pub fn on_blocked(&mut self) {
        debug_assert!(!self.blocked, "waits already");
        self.blocked = true;
        self.slow = true;
        self.streak = 0;
    }

    /// There may be room: the next step is to send.
    pub fn on_unblocked(&mut self) {
        debug_assert!(self.blocked);
        self.blocked = false;
        // Late shots of a multishot receive have been counted meanwhile.
        self.trusted = 0;
    }

    /// From now on nothing is delivered: the queue is empty or about to be dropped.
    pub fn discard(&mut self) {
        self.discarding = true;
        self.queued_bytes = 0;
        // A single shot on the slow group is all that throwing away deserves.
        self.slow = true;
        self.streak = 0;
        self.on_let_go();
    }

    /// Whether it waits for room at the destination.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// What the source did last.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Bytes received and not delivered.
    pub fn queued_bytes(&self) -> u32 {
        self.queued_bytes
    }

    /// Whether FIN was passed on after the last byte.
    pub fn is_finished(&self) -> bool {
        self.fin_passed
    }

    /// Whether an operation on the source is in flight, being cancelled or not.
    pub fn is_receiving(&self) -> bool {
        self.awaited().is_some() || self.receive == Receive::Cancelling
    }

    /// The operation on the source, if one is in flight that was not cancelled.
    pub fn awaited(&self) -> Option<Awaited> {
        match self.receive {
            Receive::On(_) => Some(Awaited::Bytes),
            Receive::Polling => Some(Awaited::Readiness),
            Receive::Off | Receive::Cancelling | Receive::Waiting | Receive::HeldBack => None,
        }
    }

    /// A cancel is sent for the operation on the source. Returns which, if there is one.
    pub fn on_cancel(&mut self) -> Option<Awaited> {
        let awaited = self.awaited();
        if awaited.is_some() {
            self.receive = Receive::Cancelling;
        }
        awaited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_messages_become_multishot_and_full_buffers_do_not() {
        let mut direction = Direction::new(MoverChoice::Copy);
        for _ in 0..MULTISHOT_AFTER {
            assert_eq!(
                direction.next_step(),
                Step::Receive(Group::Fast, Shots::Single)
            );
            assert!(direction.on_received(10, false, false));
            assert_eq!(direction.next_step(), Step::Send);
            direction.on_sent(10);
        }
        assert_eq!(
            direction.next_step(),
            Step::Receive(Group::Fast, Shots::Multi)
        );
        direction.on_received(4096, true, true);
        assert!(direction.must_leave_multishot());
        assert!(!direction.must_leave_multishot(), "only once");
    }

    #[test]
    fn a_blocked_direction_does_not_receive_and_then_takes_from_the_slow_group() {
        let mut direction = Direction::new(MoverChoice::Copy);
        direction.next_step();
        direction.on_received(100, false, false);
        assert_eq!(direction.next_step(), Step::Send);
        direction.on_blocked();
        assert_eq!(direction.next_step(), Step::Rest);
        direction.on_unblocked();
        direction.on_sent(100);
        assert_eq!(
            direction.next_step(),
            Step::Receive(Group::Slow, Shots::Single)
        );
        for _ in 0..TRUSTED_AFTER {
            direction.on_received(1, false, false);
            direction.on_sent(1);
            direction.next_step();
        }
        direction.on_receive_completed(false);
        assert_eq!(
            direction.next_step(),
            Step::Receive(Group::Fast, Shots::Multi)
        );
    }

    #[test]
    fn full_buffers_that_are_delivered_at_once_leave_the_slow_group_as_well() {
        let mut direction = Direction::new(MoverChoice::Copy);
        direction.next_step();
        direction.on_received(100, true, false);
        direction.on_blocked();
        direction.on_unblocked();
        direction.on_sent(100);
        for _ in 0..TRUSTED_AFTER {
            assert_eq!(direction.group(), Group::Slow);
            direction.on_received(100, true, false);
            direction.on_sent(100);
        }
        assert_eq!(direction.group(), Group::Fast);
    }

    #[test]
    fn a_multishot_receive_ends_when_the_peer_does_not_keep_up() {
        let mut direction = Direction::new(MoverChoice::Copy);
        for _ in 0..=MULTISHOT_AFTER {
            direction.next_step();
            direction.on_received(10, false, false);
            direction.on_sent(10);
        }
        assert_eq!(
            direction.next_step(),
            Step::Receive(Group::Fast, Shots::Multi)
        );
        direction.on_received(10, false, true);
        assert_eq!(direction.next_step(), Step::Send);
        direction.on_blocked();
        assert_eq!(direction.next_step(), Step::StopReceiving);
        assert_eq!(direction.next_step(), Step::Rest);
    }

    #[test]
    fn a_limited_direction_receives_what_was_granted_and_never_multishot() {
        let mut direction = Direction::new(MoverChoice::Copy).limited(true);
        for _ in 0..2 * u32::from(MULTISHOT_AFTER) {
            assert_eq!(direction.next_step(), Step::AwaitReadable);
            assert_eq!(direction.next_step(), Step::Rest);
            direction.on_readable();
            assert_eq!(direction.next_step(), Step::Claim);
            direction.on_held_back();
            assert_eq!(direction.next_step(), Step::Rest);
            assert!(direction.on_let_go() && !direction.on_let_go());
            assert_eq!(direction.next_step(), Step::Claim);
            direction.on_granted();
            for is_left in [true, false] {
                assert_eq!(direction.next_step(), Step::ReceiveGranted(Group::Fast));
                direction.on_received(10, false, false);
                direction.on_spent(is_left);
                assert_eq!(direction.next_step(), Step::Send);
                direction.on_sent(10);
            }
        }
    }

    #[test]
    fn what_is_thrown_away_needs_no_grant() {
        let mut direction = Direction::new(MoverChoice::Splice).limited(true);
        direction.next_step();
        direction.on_readable();
        assert_eq!(direction.next_step(), Step::Claim);
        direction.on_held_back();
        direction.discard();
        assert_eq!(
            direction.next_step(),
            Step::Receive(Group::Slow, Shots::Single)
        );
    }

    #[test]
    fn fin_waits_for_the_last_byte() {
        let mut direction = Direction::new(MoverChoice::Copy);
        direction.next_step();
        direction.on_received(5, false, false);
        direction.on_fin();
        assert_eq!(direction.next_step(), Step::Send);
        direction.on_sent(5);
        assert_eq!(direction.next_step(), Step::PassFin);
        assert_eq!(direction.next_step(), Step::Rest);
        assert!(direction.is_finished());
    }
}
