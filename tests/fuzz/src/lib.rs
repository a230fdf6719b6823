//! What the fuzz targets share: where their seeds go, and BTF written by hand.
//!
//! Seeds are in the code of their targets, not in files: a few honest inputs, from which the fuzzer finds the others.

use std::path::Path;

/// Writes seeds into the directory named by `HEADROOM_FUZZ_CORPUS`, if there is one: before the fuzzer reads its corpus.
pub fn sow<'a>(seeds: impl IntoIterator<Item = &'a [u8]>) {
    let Some(folder) = std::env::var_os("HEADROOM_FUZZ_CORPUS") else { return };
    for (number, seed) in seeds.into_iter().enumerate() {
        let file = Path::new(&folder).join(format!("seed-{number}"));
        std::fs::write(&file, seed).unwrap_or_else(|error| panic!("write `{}`: {error}", file.display()));
    }
}

/// Records and strings of a kernel with one struct of each sort, or of a module on top of it.
pub struct Btf {
    records: Vec<u32>,
    strings: Vec<u8>,
    base_strings: u32,
}

impl Btf {
    /// `struct sock { union { u32 a; struct { u32 b; } }; u32 c:3; u32 d[2]; }`, an enum of each width, a tracepoint.
    pub fn kernel() -> Self {
        let mut btf = Self { records: Vec::new(), strings: vec![0], base_strings: 0 };
        let [int, a, b, c, d] = ["unsigned int", "a", "b", "c", "d"].map(|name| btf.name(name));
        let [sock, reason, wide, state] = ["sock", "reason", "wide", "btf_trace_state"].map(|name| btf.name(name));
        btf.record(int, 1, 0, 4, &[32]);
        btf.record(0, 4, 1, 4, &[b, 1, 0]);
        btf.record(0, 5, 2, 4, &[a, 1, 0, 0, 2, 0]);
        btf.record(0, 3, 0, 0, &[1, 1, 2]);
        btf.record(sock, 0x80 | 4, 3, 16, &[0, 3, 0, c, 1, 3 << 24 | 32, d, 4, 64]);
        btf.record(reason, 6, 1, 4, &[a, 7]);
        btf.record(wide, 19, 1, 8, &[a, 1, 2]);
        btf.record(0, 13, 2, 0, &[0, 0, 0, 1]);
        btf.record(0, 2, 0, 8, &[]);
        btf.record(state, 8, 0, 9, &[]);
        btf
    }

    /// `struct nf_conn { struct sock sock; u32 status; }`, its ids and strings behind the kernel's.
    pub fn module() -> Self {
        let kernel = Self::kernel();
        let mut btf = Self { records: Vec::new(), strings: Vec::new(), base_strings: length(kernel.strings.len()) };
        let sock = length(kernel.strings.windows(5).position(|text| text == b"sock\0").expect("the kernel has a sock"));
        let [nf_conn, status] = ["nf_conn", "status"].map(|name| btf.name(name));
        btf.record(nf_conn, 4, 2, 20, &[sock, 5, 0, status, 1, 128]);
        btf
    }

    fn name(&mut self, name: &str) -> u32 {
        let at = self.base_strings + length(self.strings.len());
        self.strings.extend(name.bytes().chain([0]));
        at
    }

    fn record(&mut self, name: u32, kind: u32, count: u32, size_or_type: u32, body: &[u32]) {
        self.records.extend([name, kind << 24 | count, size_or_type]);
        self.records.extend(body);
    }

    /// As the kernel shows it.
    pub fn bytes(&self) -> Vec<u8> {
        let records = length(self.records.len() * 4);
        let header = [24, 0, records, records, length(self.strings.len())];
        let words = header.iter().chain(&self.records).flat_map(|word| word.to_ne_bytes());
        0xeb9f_u16.to_ne_bytes().into_iter().chain([1, 0]).chain(words).chain(self.strings.iter().copied()).collect()
    }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).expect("seeds are short")
}

/// Asks everything that is ever asked of BTF, with the names of the seeds.
pub fn ask(btf: &headroom_host::btf::Btf) {
    for path in [&["sock", "a"][..], &["sock", "b"], &["sock", "c"], &["sock", "d", "x"], &["nf_conn", "sock", "d"]] {
        if let Ok(member) = btf.member(path) {
            let _widths = (member.offset_bytes(), member.width_bytes());
        }
    }
    let _sizes = (btf.size_of("sock"), btf.size_of("nf_conn"));
    let _values = (btf.enum_value("reason", "a"), btf.enum_value("wide", "a"));
    let _arguments = btf.tracepoint_arguments("state");
}
