//! Rules on versions that are known to lose pod addresses.
//!
//! A version with a fix is no proof that nothing leaks: containerd was mended in 2022, and since 2024 some of its versions
//! pass over errors of a teardown again.

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::model::View;
use crate::observe::{Runtime, SourceId};
use crate::report::Report;

/// Versions of the runtimes that answered.
pub(super) fn known_issues(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let leaked: u64 = report.ipam.networks.iter().map(|network| network.counts.leaked).sum();
    let containerd = view.ledger.occupants().runtimes().iter().filter(|runtime| runtime.name == "containerd");
    containerd.filter_map(|runtime| of_containerd(runtime, leaked)).collect()
}

fn of_containerd(runtime: &Runtime, leaked: u64) -> Option<Finding> {
    let (id, says) = match Version::parse(&runtime.version)? {
        // GKE's own builds carry fixes that the number does not tell of.
        version if version < Version(1, 6, 9) && runtime.version.contains("-gke.") => (
            FindingId::KnownIssueContainerd5768,
            "a sandbox whose set-up takes too long is forgotten with its address (issue 5768), unless Google mended this build: that depends on the GKE version",
        ),
        // The fix came to 1.6 in October 2022; that 1.6.9 is the first with it was not verified.
        version if version < Version(1, 6, 9) => (
            FindingId::KnownIssueContainerd5768,
            "a sandbox whose set-up takes too long is forgotten with its address (issue 5768; fixed in 1.7 and about 1.6.9)",
        ),
        version if version >= Version(1, 6, 37) && version < Version(1, 7, 0) => (
            FindingId::KnownIssueContainerd10744,
            "errors of a teardown are passed over where there is no CNI result, so an address can leak again (since 1.6.37)",
        ),
        version if version >= Version(2, 0, 0) => (
            FindingId::KnownIssueContainerd12130,
            "an address leaks where a later plugin of the chain fails (issue 12130, open; seen with 2.2.5)",
        ),
        _no_issue_is_known => return None,
    };
    let of_5768 = id == FindingId::KnownIssueContainerd5768;
    let certain = of_5768 && !runtime.version.contains("-gke.");
    let mut evidence = vec![Evidence::seen(SourceId::Cri, format!("{} at {}", runtime.version, runtime.socket))];
    if leaked > 0 {
        evidence.push(Evidence::given(format!("{leaked} pod addresses are leaked on this node")));
    }
    Some(Finding {
        id,
        // What may happen is worth knowing; what does happen is a warning.
        severity: if certain || leaked > 0 { Severity::Warning } else { Severity::Info },
        title: format!("containerd {}: {says}", runtime.version),
        subject: "containerd".to_owned(),
        evidence,
        remedy: if certain {
            "upgrade containerd (GKE: 1.22.17-gke.3100, 1.23.16-gke.200, 1.24.9-gke.3200, 1.25.6-gke.200 or later)"
                .to_owned()
        } else if of_5768 {
            "look at the node's GKE version: fixed in 1.22.17-gke.3100, 1.23.16-gke.200, 1.24.9-gke.3200, 1.25.6-gke.200 and later"
                .to_owned()
        } else {
            "watch `headroom ipam scan`, and give back what leaks".to_owned()
        },
    })
}

/// Major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Version {
    /// `v1.6.20~ds1`, `1.7.0-rc.1`: the three numbers it begins with.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().trim_start_matches('v').splitn(3, '.');
        let mut next = || {
            let part = numbers.next()?;
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part.get(..digits)?.parse::<u32>().ok()
        };
        Some(Self(next()?, next()?, next()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: &str, leaked: u64) -> Option<(FindingId, Severity)> {
        let (name, socket) = ("containerd".to_owned(), "/run/containerd/containerd.sock".to_owned());
        of_containerd(&Runtime { name, version: version.to_owned(), socket }, leaked)
            .map(|found| (found.id, found.severity))
    }

    /// The table of published issues. If this fails, people are sent to upgrade for nothing, or told that they are safe.
    #[test]
    fn every_version_is_told_what_is_known_of_it() {
        let old = Some((FindingId::KnownIssueContainerd5768, Severity::Warning));
        for version in ["1.4.3", "1.5.13", "1.6.0", "1.6.8~ds1"] {
            assert_eq!(of(version, 0), old, "{version}");
        }
        // The number of GKE's own build does not tell whether the fix is in it.
        assert_eq!(of("v1.6.8-gke.0", 0), Some((FindingId::KnownIssueContainerd5768, Severity::Info)));
        assert_eq!(of("v1.6.8-gke.0", 1), old);
        for version in ["1.6.9", "1.6.20~ds1", "1.6.36", "1.7.0", "1.7.24", "unknown", "", "1.6"] {
            assert_eq!(of(version, 5), None, "{version}");
        }
        assert_eq!(of("1.6.37", 0), Some((FindingId::KnownIssueContainerd10744, Severity::Info)));
        assert_eq!(of("1.6.38", 2), Some((FindingId::KnownIssueContainerd10744, Severity::Warning)));
        assert_eq!(of("v2.2.5", 0), Some((FindingId::KnownIssueContainerd12130, Severity::Info)));
        assert_eq!(of("2.0.0-rc.1", 1), Some((FindingId::KnownIssueContainerd12130, Severity::Warning)));
    }
}
