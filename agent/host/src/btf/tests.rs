//! The reader against bytes written here, honest and not.

use proptest::prelude::*;

use super::*;

/// Writes BTF as a compiler would.
#[derive(Default)]
struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    next_id: u32,
    /// What the string offsets of a module continue.
    base_strings: u32,
}

impl Writer {
    fn new() -> Self {
        Self { strings: vec![0], next_id: 1, ..Self::default() }
    }

    /// A module's: ids and string offsets go on where the kernel's end.
    fn on(kernel: &Btf) -> Self {
        let next_id = word(kernel.end_of_ids());
        Self { next_id, base_strings: word(kernel.end_of_strings()), ..Self::default() }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.base_strings + word(self.strings.len());
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
    btf.record("wide", 19, true, 2, 8, &[names[0], 1, 2, names[1], u32::MAX - 1, u32::MAX]);
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
    assert_eq!(btf.enum_value("wide", "KEEP").unwrap(), -2);
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

/// A kernel's module: a struct whose members are the kernel's, one of a name the kernel has too, an enum, a tracepoint.
fn module(kernel: &Btf) -> Vec<u8> {
    let mut btf = Writer::on(kernel);
    let id = |name: &str| {
        let index = kernel.records.iter().position(|&at| {
            kernel.has_name(Record::at(&kernel.bytes, usize::try_from(at).unwrap()).unwrap().name, name)
        });
        word(index.unwrap() + 1)
    };
    let (int, common) = (id("unsigned int"), id("sock_common"));
    let inner = btf.composite(STRUCT, "", 32, &[("mark", int, 0, 0), ("common", common, 64, 0)]);
    let array = btf.record("", 3, false, 0, 0, &[common, int, 3]);
    let entry = btf.composite(
        STRUCT,
        "nf_conn",
        136,
        &[("status", int, 0, 0), ("", inner, 64, 0), ("hashes", array, 320, 0), ("kern", int, 896, 3)],
    );
    // The kernel has a `sock` of its own.
    btf.composite(STRUCT, "sock", 8, &[("of_module", entry, 0, 0)]);
    let name = btf.name("DYING");
    btf.record("ip_conntrack_status", 6, false, 1, 4, &[name, 0x200]);
    let proto = btf.record("", 13, false, 2, 0, &[0, 0, 0, int]);
    let pointer = btf.record("", 2, false, 0, proto, &[]);
    btf.record("btf_trace_nf", 8, false, 0, pointer, &[]);
    btf.finish()
}

fn kernel() -> Arc<Btf> {
    Arc::new(Btf::parse(sample()).unwrap())
}

/// Exercises ids and string offsets that continue the kernel's. If this fails, a module's struct is read at wrong bytes.
#[test]
fn a_module_is_read_on_top_of_the_kernel() {
    let kernel = kernel();
    let btf = Btf::parse_module(module(&kernel), &kernel).unwrap();
    assert_eq!(offset(&btf, &["nf_conn", "status"]), 0);
    assert_eq!(offset(&btf, &["nf_conn", "mark"]), 8);
    assert_eq!(offset(&btf, &["nf_conn", "common", "rcv_saddr"]), 20);
    assert_eq!(btf.member(&["nf_conn", "hashes"]).unwrap().width_bytes(), Some(72));
    let kern = btf.member(&["nf_conn", "kern"]).unwrap();
    assert_eq!((kern.offset_bytes(), kern.bitfield_bits), (Some(112), Some(3)));
    assert_eq!(btf.size_of("nf_conn").unwrap(), 136);
    assert_eq!(btf.enum_value("ip_conntrack_status", "DYING").unwrap(), 0x200);
    assert_eq!(btf.tracepoint_arguments("nf").unwrap(), 1);
}

#[test]
fn what_a_module_does_not_have_is_the_kernels() {
    let kernel = kernel();
    let btf = Btf::parse_module(module(&kernel), &kernel).unwrap();
    assert_eq!(offset(&btf, &["sock_common", "rcv_saddr"]), 4);
    assert_eq!(btf.enum_value("wide", "KEEP").unwrap(), -2);
    assert_eq!(btf.tracepoint_arguments("state").unwrap(), 3);
    // Of two structs of one name, the one that has the member; the module's is asked first.
    assert_eq!(offset(&btf, &["sock", "of_module", "mark"]), 8);
    assert_eq!(offset(&btf, &["sock", "__sk_common", "daddr"]), 8);
    assert_eq!(btf.size_of("sock").unwrap(), 8);
    assert_eq!(btf.member(&["sock", "gone"]).unwrap_err().to_string(), "this kernel has no `sock.gone`");
    // And the kernel knows nothing of the module.
    assert!(matches!(kernel.member(&["nf_conn", "status"]), Err(BtfError::NoType { .. })));
}

/// Exercises ids in the kernel's types that only a module could have. If this fails, one type is taken for another.
#[test]
fn the_kernels_ids_never_mean_a_modules_types() {
    let mut btf = Writer::new();
    let int = btf.int("int", 4);
    btf.composite(STRUCT, "lying", 4, &[("honest", int, 0, 0), ("inner", int + 2, 0, 0), ("", int + 2, 0, 0)]);
    let kernel = Arc::new(Btf::parse(btf.finish()).unwrap());
    let mut btf = Writer::on(&kernel);
    assert_eq!(btf.composite(STRUCT, "of_module", 4, &[("secret", int, 0, 0)]), int + 2);
    let btf = Btf::parse_module(btf.finish(), &kernel).unwrap();
    assert_eq!(offset(&btf, &["of_module", "secret"]), 0);
    for path in [&["lying", "inner", "secret"][..], &["lying", "secret"]] {
        assert!(matches!(btf.member(path), Err(BtfError::NoMember { .. })), "{path:?}");
    }
}

/// Exercises a name at the seam of the two string tables. If this fails, a lying offset finds a name nobody wrote.
#[test]
fn a_name_does_not_reach_from_the_kernels_strings_into_a_modules() {
    let mut btf = Writer::new();
    btf.int("int", 4);
    // Not ended by a NUL: the kernel would refuse it.
    btf.strings.extend(b"half");
    let kernel = Arc::new(Btf::parse(btf.finish()).unwrap());
    let mut btf = Writer::on(&kernel);
    let seam = btf.base_strings;
    btf.strings.extend(b"way\0");
    btf.types.extend([seam - 4, STRUCT << 24, 4, seam, STRUCT << 24, 8].into_iter().flat_map(u32::to_ne_bytes));
    let btf = Btf::parse_module(btf.finish(), &kernel).unwrap();
    assert!(matches!(btf.size_of("halfway"), Err(BtfError::NoType { .. })));
    assert!(matches!(btf.size_of("half"), Err(BtfError::NoType { .. })));
    assert_eq!(btf.size_of("way").unwrap(), 8);
}

/// Exercises circles through both. If this fails, a crafted file hangs the agent.
#[test]
fn circles_in_a_module_end() {
    let kernel = kernel();
    let mut btf = Writer::on(&kernel);
    let own = btf.next_id;
    btf.record("a", 8, false, 0, own + 1, &[]);
    btf.record("b", 8, false, 0, own, &[]);
    btf.composite(STRUCT, "c", 4, &[("d", own, 0, 0), ("", own + 2, 0, 0)]);
    let btf = Btf::parse_module(btf.finish(), &kernel).unwrap();
    assert!(matches!(btf.member(&["c", "d"]), Err(BtfError::TooDeep { .. })));
    assert!(matches!(btf.member(&["c", "x"]), Err(BtfError::TooDeep { .. })));
}

/// Exercises a module's bytes without its kernel. If this fails, every id in them means something else.
#[test]
fn a_module_is_not_taken_for_a_kernel() {
    let error = Btf::parse(module(&kernel())).unwrap_err().to_string();
    assert!(error.contains("is it a module's?"), "{error}");
}

#[test]
fn a_module_that_is_not_there_is_told_from_one_that_cannot_be_read() {
    let kernel = kernel();
    let folder = tempfile::tempdir().unwrap();
    let root = HostRoot::at(folder.path());
    let of = |name: &str| Btf::of_module(&root, &kernel, name);
    assert!(matches!(of("nf_conntrack"), Err(BtfError::NoModule { .. })));
    std::fs::create_dir_all(root.path("/sys/kernel/btf/nf_nat")).unwrap();
    assert!(matches!(of("nf_nat"), Err(BtfError::Unreadable { .. })));
    std::fs::write(root.path("/sys/kernel/btf/nf_conntrack"), module(&kernel)).unwrap();
    assert_eq!(of("nf_conntrack").unwrap().size_of("nf_conn").unwrap(), 136);
    std::fs::write(root.path(VMLINUX), sample()).unwrap();
    for name in ["", "vmlinux", ".", "..", "../btf/nf_conntrack", "/sys/kernel/btf/nf_conntrack"] {
        assert!(matches!(of(name), Err(BtfError::NoModule { .. })), "{name}");
    }
    let error = of("").unwrap_err().to_string();
    assert!(error.contains("not loaded, or built in"), "{error}");
}

/// If this fails, a captured tree with a FIFO in it hangs the agent.
#[test]
fn a_fifo_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let root = HostRoot::at(folder.path());
    std::fs::create_dir_all(root.path(FOLDER)).unwrap();
    nix::unistd::mkfifo(&root.path(VMLINUX), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(Btf::of_kernel(&root), Err(BtfError::Malformed { .. })));
}

fn ask_everything(bytes: Vec<u8>) {
    if let Ok(btf) = Btf::parse(bytes) {
        ask(&btf);
    }
}

fn ask(btf: &Btf) {
    for path in [
        &["sock", "__sk_common", "daddr"][..],
        &["sock", "protocol"],
        &["sock_common", "range"],
        &["sock", "x", "y"],
        &["nf_conn", "hashes"],
        &["nf_conn", "common", "rcv_saddr"],
    ] {
        let _answer = btf.member(path).map(|member| (member.offset_bytes(), member.width_bytes()));
    }
    let _answers = (btf.size_of("sock"), btf.enum_value("reason", "KEEP"), btf.enum_value("wide", "DROP"));
    let _more = (btf.size_of("nf_conn"), btf.enum_value("ip_conntrack_status", "DYING"));
    let _arguments = (btf.tracepoint_arguments("state"), btf.tracepoint_arguments("nf"));
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

    /// Exercises lies on both sides of the seam. If this fails, hostile bytes bring the agent down.
    #[test]
    fn a_changed_module_on_a_changed_kernel_never_panics(
        changes in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut below, mut above) = (sample(), module(&kernel()));
        for (of_module, at, value) in changes {
            let bytes = if of_module { &mut above } else { &mut below };
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        above.truncate(cut.index(above.len() * 2));
        // Also on a kernel that is not the module's.
        for below in [below, sample()] {
            if let Ok(kernel) = Btf::parse(below)
                && let Ok(btf) = Btf::parse_module(above.clone(), &Arc::new(kernel))
            {
                ask(&btf);
            }
        }
    }
}
