//! Tests of [`super`]: examples, then the properties that hold for every value.

use super::*;
use proptest::prelude::*;

#[test]
fn byte_sizes_as_written() {
    for (text, bytes) in [
        ("0", 0),
        ("4096", 4096),
        ("16KiB", 16_384),
        ("64k", 65_536),
        ("1MiB", MIB),
        ("2G", 2 * GIB),
        ("8 KiB", 8192),
    ] {
        assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
    }
    for (text, kind) in [
        ("", UnitErrorKind::NotAByteSize),
        ("-1", UnitErrorKind::NotAByteSize),
        ("16 apples", UnitErrorKind::NotAByteSize),
        ("16KB", UnitErrorKind::AmbiguousUnit),
        ("1.5MiB", UnitErrorKind::Fraction),
        ("99999999999999999999", UnitErrorKind::TooLarge),
        ("18446744073709551615k", UnitErrorKind::TooLarge),
    ] {
        assert_eq!(
            text.parse::<ByteSize>().expect_err(text).kind(),
            kind,
            "{text}"
        );
    }
}

#[test]
fn durations_as_written() {
    for (text, us) in [
        ("0", 0),
        ("50us", 50),
        ("500ms", 500_000),
        ("3s", 3_000_000),
        ("10m", 600_000_000),
        ("1h", HOUR_US),
        ("7d", 7 * DAY_US),
    ] {
        assert_eq!(
            parse_duration(text),
            Ok(Duration::from_micros(us)),
            "{text}"
        );
    }
    for (text, kind) in [
        ("", UnitErrorKind::NotADuration),
        ("-3s", UnitErrorKind::NotADuration),
        ("3", UnitErrorKind::NoUnit),
        ("3sec", UnitErrorKind::NotADuration),
        ("3S", UnitErrorKind::NotADuration),
        ("1.5s", UnitErrorKind::Fraction),
        ("18446744073709551615d", UnitErrorKind::TooLarge),
    ] {
        assert_eq!(parse_duration(text).expect_err(text).kind(), kind, "{text}");
    }
    assert_eq!(format_duration(Duration::from_nanos(1)), "1us");
    assert_eq!(format_duration(Duration::from_secs(90)), "90s");
}

#[test]
fn addresses_as_written() {
    for text in [
        "127.0.0.1:9000",
        "[::1]:9000",
        "[::]:0",
        "unix:/run/a b.sock",
    ] {
        assert_eq!(text.parse::<Address>().expect(text).to_string(), text);
    }
    let long_path = format!("unix:/{}", "x".repeat(UNIX_PATH_MAX_BYTES));
    for (text, kind) in [
        ("localhost:80", UnitErrorKind::HostName),
        ("a/b", UnitErrorKind::NotAnAddress),
        ("127.0.0.1", UnitErrorKind::NoPort),
        ("[::1]", UnitErrorKind::NoPort),
        ("::1", UnitErrorKind::NoBrackets),
        ("2001:db8::1:99999", UnitErrorKind::NoBrackets),
        ("127.0.0.1:65536", UnitErrorKind::BadPort),
        ("127.0.0.1:", UnitErrorKind::BadPort),
        ("unix:run/x", UnitErrorKind::RelativePath),
        ("unix:", UnitErrorKind::RelativePath),
        ("unix:/a\0b", UnitErrorKind::ControlCharacter),
        (long_path.as_str(), UnitErrorKind::LongPath),
    ] {
        assert_eq!(
            text.parse::<Address>().expect_err(text).kind(),
            kind,
            "{text}"
        );
    }
}

#[test]
fn hosts_as_written() {
    for text in ["localhost:80", "a.example.com.:443", "my_app-1:9000"] {
        assert_eq!(text.parse::<HostPort>().expect(text).to_string(), text);
    }
    for (text, kind) in [
        ("localhost", UnitErrorKind::NoPort),
        ("256.0.0.1:80", UnitErrorKind::BadHost),
        ("-a:80", UnitErrorKind::BadHost),
        ("a..b:80", UnitErrorKind::BadHost),
        ("a b:80", UnitErrorKind::BadHost),
        (":80", UnitErrorKind::BadHost),
        ("http://a/:80", UnitErrorKind::BadHost),
        ("a:+80", UnitErrorKind::BadPort),
        ("a:http", UnitErrorKind::BadPort),
        ("a/b", UnitErrorKind::NotAServer),
    ] {
        assert_eq!(
            text.parse::<HostPort>().expect_err(text).kind(),
            kind,
            "{text}"
        );
    }
}

proptest! {
    #[test]
    fn byte_size_survives_printing(bytes in any::<u64>(), shift in 0u32..40) {
        let size = ByteSize(bytes >> shift << shift);
        prop_assert_eq!(size.to_string().parse(), Ok(size));
    }

    #[test]
    fn duration_survives_printing(number in 0u64..100_000_000, unit_us in prop::sample::select(vec![1, MILLISECOND_US, SECOND_US, MINUTE_US, HOUR_US, DAY_US])) {
        let duration = Duration::from_micros(number * unit_us);
        prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }

    #[test]
    fn address_survives_printing(address in any::<SocketAddr>(), path in "/[ -~é]{0,50}") {
        // Flow information has no textual form.
        let address = match address {
            SocketAddr::V6(mut v6) => { v6.set_flowinfo(0); SocketAddr::V6(v6) }
            v4 => v4,
        };
        for address in [Address::Tcp(address), Address::Unix(PathBuf::from(path))] {
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }
    }

    #[test]
    fn host_survives_printing(host in "[a-z_]([a-z0-9-]{0,20}[a-z])?(\\.[a-z]{1,9}){0,3}", port in any::<u16>()) {
        let host_port = HostPort { host, port };
        prop_assert_eq!(host_port.to_string().parse(), Ok(host_port));
    }

    #[test]
    fn junk_is_an_error_and_not_a_panic(text in "\\PC{0,40}|[0-9a-zA-Z:.\\[\\]/-]{0,40}", tail in any::<String>()) {
        for text in [text.as_str(), &tail, &format!("{text}{tail}"), &format!("unix:{tail}")] {
            for error in [
                text.parse::<ByteSize>().err(),
                parse_duration(text).err(),
                text.parse::<Address>().err(),
                text.parse::<HostPort>().err(),
            ].into_iter().flatten() {
                prop_assert!(!error.remedy().is_empty());
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }
}
