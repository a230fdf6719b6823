//! The reader against bytes written here, honest and not.

use proptest::prelude::*;

use super::*;

/// Writes BTF as a compiler would.
#[derive(Default)]
struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    next_id: u32,
}

impl Writer {
    fn new() -> Self {
        Self { strings: vec![0], next_id: 1, ..Self::default() }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = word(self.strings.len());
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn record(&mut self, name: &str, kind: u32, flag: bool, count: usize, size_or_type: u32, body: &[u32]) -> u32 {
        let name = self.name(name);
        for word in [name, u32::from(flag) << 31 | kind << 24 | word(count), size_or_type].iter().chain(body) {
            self.types.extend(word.to_ne_bytes());
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn int(&mut self, name: &str, bytes: u32) -> u32 {
        self.record(name, 1, false, 0, bytes, &[bytes * 8])
    }

    /// Members as (name, type, offset in bits, bit-field width).
    fn composite(&mut self, kind: u32, name: &str, bytes: u32, members: &[(&str, u32, u32, u32)]) -> u32 {
        let flag = members.iter().any(|member| member.3 > 0);
        let body: Vec<u32> = members
            .iter()
            .flat_map(|&(name, id, offset, width)| {
                [self.name(name), id, if flag { width << 24 | offset } else { offset }]
            })
            .collect();
        self.record(name, kind, flag, members.len(), bytes, &body)
    }

    fn finish(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        let lengths = [24, 0, word(self.types.len()), word(self.types.len()), word(self.strings.len())];
        bytes.extend(lengths.into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend(self.types);
        bytes.extend(self.strings);
        bytes
    }
}

fn word(length: usize) -> u32 {
    u32::try_from(length).unwrap()
}

const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// A socket in miniature: nameless unions, a typedef, an array, a bit-field, enums of both widths, a tracepoint.
fn sample() -> Vec<u8> {
    let mut btf = Writer::new();
    let int = btf.int("unsigned int", 4);
    let short = btf.record("__u16", 8, false, 0, int + 2, &[]);
    assert_eq!(btf.int("unsigned short", 2), short + 1);
    let pair = btf.composite(STRUCT, "", 8, &[("daddr", int, 0, 0), ("rcv_saddr", int, 32, 0)]);
    let whole = btf.int("long", 8);
    let addresses = btf.composite(UNION, "", 8, &[("addrpair", whole, 0, 0), ("", pair, 0, 0)]);
    let array = btf.record("", 3, false, 0, 0, &[int, int, 2]);
    let common = btf.composite(
        STRUCT,
        "sock_common",
        24,
        &[("", addresses, 0, 0), ("family", short, 64, 0), ("range", array, 96, 0)],
    );
    btf.composite(
        STRUCT,
        "sock",
        40,
        &[("lock", int, 0, 0), ("__sk_common", common, 64, 0), ("kern", int, 256, 1), ("protocol", int, 264, 8)],
    );
    let names = [btf.name("DROP"), btf.name("KEEP")];
    btf.record("reason", 6, true, 2, 4, &[names[0], u32::MAX, names[1], 7]);
    btf.record("wide", 19, false, 1, 8, &[names[0], 1, 2]);
    let proto = btf.record("", 13, false, 4, 0, &[0, 0, 0, int, 0, int, 0, int]);
    let pointer = btf.record("", 2, false, 0, proto, &[]);
    btf.record("btf_trace_state", 8, false, 0, pointer, &[]);
    btf.finish()
}

fn offset(btf: &Btf, path: &[&str]) -> u32 {
    btf.member(path).unwrap().offset_bytes().unwrap()
}

/// Exercises descent into nameless members. If this fails, the programs read the wrong bytes of a socket.
#[test]
fn members_are_found_through_nameless_structs_unions_and_typedefs() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(offset(&btf, &["sock", "__sk_common", "daddr"]), 8);
    assert_eq!(offset(&btf, &["sock", "__sk_common", "rcv_saddr"]), 12);
    assert_eq!(offset(&btf, &["sock_common", "rcv_saddr"]), 4);
    let family = btf.member(&["sock", "__sk_common", "family"]).unwrap();
    assert_eq!((family.offset_bytes(), family.width_bytes()), (Some(16), Some(2)));
    assert_eq!(btf.member(&["sock_common", "range"]).unwrap().width_bytes(), Some(8));
    assert_eq!(btf.size_of("sock").unwrap(), 40);
}

/// Exercises `kind_flag`. If this fails, `sk_protocol` is misread on kernels before 5.6.
#[test]
fn bit_fields_say_their_width() {
    let btf = Btf::parse(sample()).unwrap();
    let protocol = btf.member(&["sock", "protocol"]).unwrap();
    assert_eq!((protocol.offset_bytes(), protocol.width_bytes()), (Some(33), Some(1)));
    let kern = btf.member(&["sock", "kern"]).unwrap();
    assert_eq!((kern.bitfield_bits, kern.width_bytes()), (Some(1), None));
}

#[test]
fn enumerators_have_their_values_in_both_widths() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.enum_value("reason", "DROP").unwrap(), -1);
    assert_eq!(btf.enum_value("reason", "KEEP").unwrap(), 7);
    assert_eq!(btf.enum_value("wide", "DROP").unwrap(), 2 << 32 | 1);
}

#[test]
fn a_tracepoint_has_one_argument_less_than_its_typedef() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.tracepoint_arguments("state").unwrap(), 3);
    assert_eq!(btf.tracepoint_arguments("gone").unwrap_err().to_string(), "this kernel has no `tracepoint gone`");
}

/// Exercises the messages. If this fails, an unsupported kernel is reported without saying what it lacks.
#[test]
fn what_is_missing_is_named() {
    let btf = Btf::parse(sample()).unwrap();
    let message = |path: &[&str]| btf.member(path).unwrap_err().to_string();
    assert_eq!(message(&["sock", "__sk_common", "cookie"]), "this kernel has no `sock.__sk_common.cookie`");
    assert_eq!(message(&["sock", "lock", "owner"]), "this kernel has no `sock.lock.owner`");
    assert_eq!(message(&["nf_conn", "status"]), "this kernel has no `struct nf_conn`");
    assert!(message(&[]).contains("no ``"));
}

#[test]
fn a_kernel_without_btf_is_told_from_one_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let root = HostRoot::at(folder.path());
    assert!(matches!(Btf::of_kernel(&root), Err(BtfError::NotThere { .. })));
    std::fs::create_dir_all(root.path(VMLINUX)).unwrap();
    assert!(matches!(Btf::of_kernel(&root), Err(BtfError::Unreadable { .. })));
}

/// Exercises circles and explosions. If this fails, a crafted file hangs the agent.
#[test]
fn circles_and_explosions_end() {
    let mut circle = Writer::new();
    // typedef A -> typedef A; a struct that has itself as a nameless member; an array of itself.
    circle.record("a", 8, false, 0, 1, &[]);
    circle.composite(STRUCT, "b", 4, &[("", 2, 0, 0)]);
    circle.composite(STRUCT, "c", 4, &[("d", 1, 0, 0), ("e", 4, 0, 0)]);
    circle.record("", 3, false, 0, 0, &[4, 4, 2]);
    let btf = Btf::parse(circle.finish()).unwrap();
    assert!(matches!(btf.member(&["b", "x"]), Err(BtfError::TooDeep { .. })));
    assert!(matches!(btf.member(&["c", "d"]), Err(BtfError::TooDeep { .. })));
    assert!(matches!(btf.member(&["c", "e"]), Err(BtfError::TooDeep { .. })));

    let mut explosion = Writer::new();
    explosion.composite(STRUCT, "leaf", 0, &[]);
    for id in 2..30 {
        let members = vec![("", id - 1, 0, 0); 64];
        explosion.composite(STRUCT, "level", 0, &members);
    }
    let btf = Btf::parse(explosion.finish()).unwrap();
    assert!(matches!(btf.member(&["level", "x"]), Err(BtfError::TooDeep { .. })));
}

fn ask_everything(bytes: Vec<u8>) {
    let Ok(btf) = Btf::parse(bytes) else { return };
    for path in
        [&["sock", "__sk_common", "daddr"][..], &["sock", "protocol"], &["sock_common", "range"], &["sock", "x", "y"]]
    {
        let _answer = btf.member(path).map(|member| (member.offset_bytes(), member.width_bytes()));
    }
    let _answers = (btf.size_of("sock"), btf.enum_value("reason", "KEEP"), btf.enum_value("wide", "DROP"));
    let _arguments = btf.tracepoint_arguments("state");
}

proptest! {
    /// Exercises lying lengths, ids and kinds. If this fails, hostile bytes bring the agent down.
    #[test]
    fn changed_bytes_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), keep in any::<prop::sample::Index>()) {
        let mut bytes = sample();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let cut = keep.index(bytes.len() * 2);
        bytes.truncate(cut);
        ask_everything(bytes);
    }

    /// Exercises noise behind a plausible header. If this fails, hostile bytes bring the agent down.
    #[test]
    fn random_bytes_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..600), types in 0u32..600) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend([24, 0, types, types, 600u32.saturating_sub(types)].into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend(&noise);
        ask_everything(bytes);
        ask_everything(noise);
    }
}
