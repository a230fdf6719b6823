//! What a reservation file says: `<container id>\r\n<interface>`, from older versions the id alone.
//!
//! Read as host-local's own release does it: white space around the whole does not count
//! (<https://github.com/containernetworking/plugins/blob/v1.9.1/plugins/ipam/host-local/backend/disk/backend.go>).

use headroom_core::ids::ContainerId;
use headroom_core::known::Known;
use headroom_core::observe::Holder;

use crate::bounded::shown;

/// The holder named by the content of a reservation file. Absent: nothing was written yet.
pub fn parse(content: &[u8]) -> Known<Holder> {
    if content.is_empty() {
        return Known::Absent;
    }
    let Ok(text) = std::str::from_utf8(content) else {
        return Known::because(format!("the file holds bytes that are not text: `{}`", shown(content)));
    };
    let mut lines =
        text.trim_matches([' ', '\t', '\r', '\n']).split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    match (lines.next().unwrap_or_default(), lines.next(), lines.next()) {
        ("", None, None) => Known::because("the file holds nothing but white space"),
        (id, _, _) if !is_container_id(id) => {
            Known::because(format!("the file does not begin with a container id but with `{}`", shown(id.as_bytes())))
        }
        (_, Some(ifname), None) if !is_interface(ifname) => {
            Known::because(format!("the file names the interface `{}`, which cannot exist", shown(ifname.as_bytes())))
        }
        (id, ifname, None) => {
            Known::Present(Holder { container: ContainerId(id.to_owned()), ifname: ifname.map(str::to_owned) })
        }
        (_, _, Some(_)) => Known::because("the file has more lines than host-local writes"),
    }
}

/// Whether a runtime could have given this id.
pub(crate) fn is_container_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Whether the kernel would take this interface name: `dev_valid_name`, and nothing that needs escaping.
pub(crate) fn is_interface(name: &str) -> bool {
    (1..16).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "3f2b9c0de1a4f5b6c7d8e9f00112233445566778899aabbccddeeff001122334";

    fn holder(container: &str, ifname: Option<&str>) -> Known<Holder> {
        Known::Present(Holder { container: ContainerId(container.to_owned()), ifname: ifname.map(str::to_owned) })
    }

    #[test]
    fn every_form_host_local_wrote_is_understood() {
        assert_eq!(parse(format!("{ID}\r\neth0").as_bytes()), holder(ID, Some("eth0")));
        assert_eq!(parse(format!("{ID}\neth0\n").as_bytes()), holder(ID, Some("eth0")));
        assert_eq!(parse(ID.as_bytes()), holder(ID, None));
        assert_eq!(parse(format!("{ID}\n").as_bytes()), holder(ID, None));
        assert_eq!(parse(b"sandbox_1.a-b\r\nnet1"), holder("sandbox_1.a-b", Some("net1")));
        assert_eq!(parse(b""), Known::Absent);
    }

    #[test]
    fn anything_else_is_unknown_with_its_reason() {
        let long_id = "a".repeat(129);
        for (content, word) in [
            (&b"\0\0\0\0"[..], "container id"),
            (b"\xff\xfe\r\neth0", "not text"),
            (b" \r\n", "white space"),
            (b"../../etc/shadow\r\neth0", "container id"),
            (b"id with blanks\r\neth0", "container id"),
            (b"abc\r\neth0\r\nmore", "more lines"),
            (b"abc\r\n\r\neth0", "more lines"),
            (b"abc\r\nan-interface-name-that-is-too-long", "cannot exist"),
            (b"abc\r\n\x1b[2J", "cannot exist"),
            (long_id.as_bytes(), "container id"),
        ] {
            let parsed = parse(content);
            let why = parsed.unknown().unwrap_or_else(|| panic!("{content:?} gave {parsed:?}"));
            assert!(why.as_str().contains(word), "{content:?}: {why}");
        }
    }

    proptest! {
        /// Exercises the parser with anything. If this fails, a hostile file brings the agent down or smuggles bytes out.
        #[test]
        fn any_bytes_are_read_without_a_panic_and_ids_stay_plain(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Known::Present(holder) = parse(&content) {
                prop_assert!(is_container_id(&holder.container.0));
                prop_assert!(holder.ifname.is_none_or(|name| is_interface(&name)));
            }
        }
    }
}
