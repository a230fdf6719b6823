//! What headroom cannot do on some kernels, and why: the only reasons for which a check may end without having counted.
//!
//! It holds in both directions. A check that cannot, without a row here, has failed; so has one that can, with a row.

use crate::kernel::Kernel;

/// One thing that a kernel does not let headroom do.
#[derive(Debug)]
pub(crate) struct Inability {
    /// The check that cannot.
    check: &'static str,
    /// On which kernels.
    applies: fn(&Kernel) -> bool,
    /// Those kernels, in words.
    kernels: &'static str,
    /// Why.
    why: &'static str,
}

const INABILITIES: [Inability; 18] = [
    Inability {
        check: "counters: what finds no room in a full map",
        applies: |kernel| !kernel.kprobes,
        kernels: "without CONFIG_KPROBES",
        why: "no function can be probed",
    },
    Inability {
        check: "counters: the kernel tells which runs of probes it skipped",
        applies: |kernel| kernel.kprobes && kernel.version < (6, 7),
        kernels: "before 6.7",
        why: "a run of a kprobe's program is skipped without being counted where another program runs on that CPU",
    },
    Inability {
        check: "counters: the kernel tells which runs of probes it skipped",
        applies: |kernel| !kernel.kprobes,
        kernels: "without CONFIG_KPROBES",
        why: "no function can be probed",
    },
    Inability {
        check: "counters: all that went in, and what was refused, unmended",
        applies: |kernel| !kernel.kprobes,
        kernels: "without CONFIG_KPROBES",
        why: "no function can be probed",
    },
    Inability {
        check: "counters: packets that raced with the first of their flow",
        applies: |kernel| !kernel.kprobes,
        kernels: "without CONFIG_KPROBES",
        why: "no function can be probed",
    },
    Inability {
        check: "counters: packets that raced with the first of their flow",
        applies: |kernel| kernel.cpus < 2,
        kernels: "on one CPU",
        why: "no two packets are looked at at the same time",
    },
    Inability {
        check: "counters: what expired or was removed, by how it ended, unmended",
        applies: |kernel| !kernel.kprobes,
        kernels: "without CONFIG_KPROBES",
        why: "no function can be probed",
    },
    Inability {
        check: "counters: what a full table evicted, unmended",
        applies: |kernel| !kernel.kprobes,
        kernels: "without CONFIG_KPROBES",
        why: "no function can be probed",
    },
    Inability {
        check: "counters: what a full table evicted, unmended",
        applies: |kernel| !kernel.unloads,
        kernels: "outside of the VMs",
        why: "how large the table may get is a setting of the whole machine, and not ours to change",
    },
    Inability {
        check: "counters: flows that found no port, unmended",
        applies: |kernel| !kernel.kprobes,
        kernels: "without CONFIG_KPROBES",
        why: "no function can be probed",
    },
    Inability {
        check: "counters: flows that found no port, unmended",
        applies: |kernel| kernel.version < (5, 18),
        kernels: "before 5.18",
        why: "kfree_skb does not tell that netfilter dropped a packet; those that did are counted",
    },
    Inability {
        check: "counters: flows that a rule drops behind the translation",
        applies: |kernel| !kernel.kprobes,
        kernels: "without CONFIG_KPROBES",
        why: "no function can be probed",
    },
    Inability {
        check: "program: ct_insert attaches",
        applies: |kernel| !kernel.kprobes,
        kernels: "without CONFIG_KPROBES",
        why: "no function can be probed",
    },
    Inability {
        check: "program: ct_delete attaches",
        applies: |kernel| !kernel.kprobes,
        kernels: "without CONFIG_KPROBES",
        why: "no function can be probed",
    },
    Inability {
        check: "program: ct_no_port attaches",
        applies: |kernel| kernel.version < (5, 18),
        kernels: "before 5.18",
        why: "kfree_skb does not tell that netfilter dropped a packet",
    },
    Inability {
        check: "conntrack: new flows that found no port are counted",
        applies: |kernel| kernel.version < (5, 18),
        kernels: "before 5.18",
        why: "kfree_skb does not tell that netfilter dropped a packet",
    },
    Inability {
        check: "tcp: SYNs that the own namespace drops are seen when sent again",
        applies: |kernel| kernel.version < (6, 17),
        kernels: "before 6.17",
        // Callbacks of sock_ops would tell: why they are not used stands in ARCHITECTURE.md, "Ways not taken".
        why: "tcp_retransmit_skb is silent where the own namespace's netfilter refuses the segment; the connect is counted \
              when it times out",
    },
    Inability {
        check: crate::modules::NAME,
        applies: |kernel| !kernel.unloads,
        kernels: "outside of the VMs",
        why: "a machine's modules are not ours to unload, and where conntrack is built in (CONFIG_NF_CONNTRACK=y) there are none",
    },
];

impl Inability {
    /// Why that check cannot on this kernel; none if it must.
    pub(crate) fn of(kernel: &Kernel, check: &str) -> Option<String> {
        let row = INABILITIES.iter().find(|row| row.check == check && (row.applies)(kernel))?;
        Some(format!("{}: {}", row.kernels, row.why))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Exercises the names in the table. If this fails, a row excuses nothing, because no check has its name.
    #[test]
    fn every_row_names_a_check() {
        let mut checks: BTreeSet<String> =
            crate::SUBJECTS.into_iter().flatten().map(|check| check.name.to_owned()).collect();
        checks.insert(crate::modules::NAME.to_owned());
        checks.extend(headroom_host::ebpf::TCP.iter().map(crate::programs::name));
        checks.extend(headroom_host::ebpf::CONNTRACK.iter().map(crate::programs::name));
        for row in &INABILITIES {
            assert!(checks.contains(row.check), "{}", row.check);
        }
    }
}
