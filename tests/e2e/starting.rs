//! Starting, and refusing to start with one clear line and the right exit code: cases 76, 77, 89
//! and 91.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use corelay_bench::servers::Server;
use corelay_bench::signals::Signal;

use crate::support::peers::{connect, expect_bytes};
use crate::support::process::{Process, strace, tool};
use crate::support::proxy::{assert_one_clear_line, binary, exit};
use crate::support::{Config, DEADLINE, Launch, Proxy, skip, wait_for};

#[test]
fn case_76_refused_io_uring_ends_with_one_line_and_exit_code_3() {
    let Some(strace) = strace("case 76") else {
        return;
    };
    let upstream = Server::echo().start().unwrap();
    for error in ["EPERM", "ENOSYS", "EINVAL", "ENOMEM"] {
        let inject = format!("inject=io_uring_setup:error={error}");
        let mut proxy = Launch::default()
            .under([
                &strace,
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=io_uring_setup",
                "-e",
                &inject,
            ])
            .spawn(&Config::to([upstream.address()]));
        let status = proxy.wait_exit(DEADLINE);
        assert_eq!(
            status.code(),
            Some(exit::HOST),
            "{error}: {:?}",
            proxy.log()
        );
        assert_one_clear_line(&proxy, "io_uring");
    }
}

/// Copies the binary to where another user may run it.
fn binary_for_everyone(directory: &std::path::Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let everyone = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory, everyone.clone()).unwrap();
    let copy = directory.join("corelay");
    std::fs::copy(binary(), &copy).unwrap();
    std::fs::set_permissions(&copy, everyone).unwrap();
    copy
}

#[test]
fn case_77_too_little_locked_memory_is_named_with_the_size_needed() {
    const NOBODY: &str = "65534";
    let (Some(setpriv), Some(prlimit)) = (tool("setpriv"), tool("prlimit")) else {
        skip("case 77", "no setpriv(1) or prlimit(1) here");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let copy = binary_for_everyone(directory.path());
    let setpriv = setpriv.to_str().unwrap();
    let reuid = format!("--reuid={NOBODY}");
    let drop_rights = [
        setpriv,
        &reuid,
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ];
    let probe = Command::new(drop_rights[0])
        .args(&drop_rights[1..])
        .arg("true")
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        skip("case 77", "this user may not become another one");
        return;
    }
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()]);
    let path = directory.path().join("config.yaml");
    config.write(&path);
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    for limit in ["65536", "8388608"] {
        let mut child = Command::new(&prlimit)
            .arg(format!("--memlock={limit}:{limit}"))
            .args(drop_rights)
            .arg(&copy)
            .args(["run", "--config"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = crate::support::lines::Lines::collect(child.stderr.take().unwrap());
        let ready = log.wait(DEADLINE, |lines| {
            lines
                .iter()
                .any(|line| line.contains("\"ready\""))
                .then_some(())
        });
        // Either it works with this little, or it says what is missing.
        if ready.is_some() {
            Process(child.id()).signal(Signal::TERM);
            assert!(child.wait().unwrap().success());
            continue;
        }
        assert_eq!(
            child.wait().unwrap().code(),
            Some(exit::HOST),
            "{limit}: {:?}",
            log.all()
        );
        let text = log.all().join("\n");
        assert!(text.contains("LimitMEMLOCK"), "{limit}: {text}");
        assert!(
            text.chars().any(|c| c.is_ascii_digit()),
            "no size in {text}"
        );
    }
}

/// It was asked for, so that it is not left out without a word.
#[test]
fn zero_copy_sends_that_cannot_have_their_locked_memory_are_refused() {
    let (Some(setpriv), Some(prlimit)) = (tool("setpriv"), tool("prlimit")) else {
        skip("zero copy", "no setpriv(1) or prlimit(1) here");
        return;
    };
    // Without CAP_IPC_LOCK, which lifts the limit. Enough for the rings, not for 64 MiB of buffers.
    let wrapper = [
        prlimit.to_str().unwrap(),
        "--memlock=8388608:8388608",
        setpriv.to_str().unwrap(),
        "--inh-caps=-ipc_lock",
        "--bounding-set=-ipc_lock",
    ];
    let upstream = Server::echo().start().unwrap();
    let config = Config::to([upstream.address()])
        .set("workers", 1)
        .set("relay.zero_copy_send", true);
    let mut proxy = Launch::default().under(wrapper).spawn(&config);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::HOST));
    let text = proxy.log().join("\n");
    for part in ["zero_copy_send", "67108864", "8388608", "LimitMEMLOCK"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn case_89_a_bad_configuration_exits_with_2_and_binds_nothing() {
    let mut proxy = Launch::default()
        .spawn(&Config::to(["127.0.0.1:1"]).set("listeners.edge.upstream", "nobody"));
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::BAD_CONFIG));
    assert!(
        proxy.log().join("\n").contains("nobody"),
        "{:?}",
        proxy.log()
    );

    let Some(strace) = strace("case 89") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    let trace = directory.path().join("trace");
    for (good, code) in [(true, exit::OK), (false, exit::BAD_CONFIG)] {
        let upstream = if good { "app" } else { "nobody" };
        Config::to(["127.0.0.1:1"])
            .set("listeners.edge.upstream", upstream)
            .write(&config);
        for command in ["check", "run"] {
            if command == "run" && good {
                continue;
            }
            let output = Command::new(&strace)
                .args(["-f", "-qq", "-e", "trace=bind,listen", "-o"])
                .arg(&trace)
                .arg(binary())
                .args([command, "--config"])
                .arg(&config)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(code), "{command}: {output:?}");
            let calls = std::fs::read_to_string(&trace).unwrap();
            assert!(
                !calls.contains("bind(") && !calls.contains("listen("),
                "{calls}"
            );
        }
    }
}

#[test]
fn case_91_a_second_instance_refuses_and_takes_no_connection() {
    const CLIENTS: usize = 100;
    let first_upstream = Server::http("first").start().unwrap();
    let second_upstream = Server::http("second").start().unwrap();
    let first = Proxy::start(&Config::to([first_upstream.address()]));
    let config = Config::to([second_upstream.address()])
        .set("listeners.edge.bind", first.address().to_string());
    for _ in 0..5 {
        let mut second = Launch::default().spawn(&config);
        for _ in 0..CLIENTS / 5 {
            let mut client = connect(first.address());
            client
                .write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
                .unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("hello from first\n"), "{answer}");
        }
        assert_eq!(second.wait_exit(DEADLINE).code(), Some(exit::ADDRESS));
        assert_one_clear_line(&second, &first.address().port().to_string());
    }
    assert_eq!(second_upstream.stats().accepted, 0);
    first.finish();
}

#[test]
fn an_address_in_use_and_a_forbidden_port_exit_with_4() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = Config::to(["127.0.0.1:1"]).set("listeners.edge.bind", address.to_string());
    let mut proxy = Launch::default().spawn(&config);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::ADDRESS));
    assert_one_clear_line(&proxy, &address.to_string());

    // An address that this machine does not have (TEST-NET-1).
    let config = Config::to(["127.0.0.1:1"]).set("listeners.edge.bind", "192.0.2.1:1");
    let mut proxy = Launch::default().spawn(&config);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::ADDRESS));
    assert_one_clear_line(&proxy, "192.0.2.1:1");

    // Admin's address too.
    let config = Config::to(["127.0.0.1:1"]).set("admin.bind", address.to_string());
    let mut proxy = Launch::default().spawn(&config);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(exit::ADDRESS));
    assert_one_clear_line(&proxy, &address.to_string());
}

#[test]
fn too_few_descriptors_for_one_session_exit_with_3() {
    let Some(prlimit) = tool("prlimit") else {
        skip("too few descriptors", "no prlimit(1) here");
        return;
    };
    // Wherever it would run out. How many are open already, what started this test has a say in.
    for fds in 6..36 {
        let limit = format!("--nofile={fds}:{fds}");
        let mut proxy = Launch::default()
            .under([prlimit.to_str().unwrap(), &limit])
            .spawn(&Config::to(["127.0.0.1:1"]));
        assert_eq!(
            proxy.wait_exit(DEADLINE).code(),
            Some(exit::HOST),
            "{limit}: {:?}",
            proxy.log()
        );
        assert_one_clear_line(&proxy, "LimitNOFILE");
    }
}

#[test]
fn a_relay_needs_no_configuration_file() {
    let upstream = Server::echo().start().unwrap();
    let mut child = Command::new(binary())
        .args([
            "relay",
            "--listen",
            "127.0.0.1:0",
            "--to",
            &upstream.address().to_string(),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = crate::support::lines::Lines::collect(child.stderr.take().unwrap());
    let address = wait_for("the address in the log", || {
        log.all().iter().find_map(|line| {
            let words = line.split(|c: char| c == '"' || c.is_whitespace() || c == '=');
            words.filter_map(|word| word.parse().ok()).next()
        })
    });
    let mut client = connect(address);
    client.write_all(b"x").unwrap();
    expect_bytes(&mut client, b"x");
    drop(client);
    Process(child.id()).signal(Signal::TERM);
    assert!(child.wait().unwrap().success());
}
