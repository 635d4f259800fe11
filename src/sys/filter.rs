//! Classic BPF programs on sockets: which SYNs a listener drops, and which socket of a group gets one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::socket::set_option;

/// Drops arriving SYNs on a listening socket, and nothing else.
///
/// Closing a listener resets every client in its queue and in handshake, and in an SO_REUSEPORT
/// group new ones keep coming. With this filter clients retransmit their SYN a second later
/// instead, to whoever listens then. Accepted sockets inherit it: see [`detach_filter`].
pub fn drop_new_syns(listener: BorrowedFd<'_>) -> io::Result<()> {
    const TCP_FLAGS_OFFSET: u32 = 13;
    const SYN_AND_ACK: u32 = 0x12;
    const SYN_ONLY: u32 = 0x02;
    // Classic BPF over the TCP header: load the flags, keep SYN and ACK, drop if only SYN is set.
    let mut program = [
        bpf(
            libc::BPF_LD | libc::BPF_B | libc::BPF_ABS,
            0,
            0,
            TCP_FLAGS_OFFSET,
        ),
        bpf(
            libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
            0,
            0,
            SYN_AND_ACK,
        ),
        bpf(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN_ONLY),
        bpf(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        bpf(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_mut_ptr(),
    };
    set_option(listener, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Makes an SO_REUSEPORT group hand each connection to the socket whose CPU received it:
/// `cpus[index]` is the CPU of the group's socket number `index`. A CPU that is not among them, or
/// whose socket does not listen yet, leaves the choice to the kernel's hash.
///
/// `first` must be bound, and must be the first of the group to listen; the others follow in the
/// order of `cpus`, for the kernel numbers a group's sockets in the order in which they listen.
pub fn steer_by_cpu(first: &impl AsFd, cpus: &[usize]) -> io::Result<()> {
    /// No group has so many sockets: the kernel then goes by its hash.
    const NOBODY: u32 = u32::MAX;
    let cpu = (libc::SKF_AD_OFF + libc::SKF_AD_CPU) as u32;
    let mut program = vec![bpf(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, cpu)];
    for (index, &cpu) in cpus.iter().enumerate() {
        program.push(bpf(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            cpu as u32,
        ));
        program.push(bpf(libc::BPF_RET | libc::BPF_K, 0, 0, index as u32));
    }
    program.push(bpf(libc::BPF_RET | libc::BPF_K, 0, 0, NOBODY));
    let program = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_mut_ptr(),
    };
    let name = libc::SO_ATTACH_REUSEPORT_CBPF;
    set_option(first.as_fd(), libc::SOL_SOCKET, name, &program)
}

/// Takes the inherited filter off a socket that was accepted while its listener had one.
pub fn detach_filter(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32)
}

fn bpf(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}
