//! Who holds the ports of a destination.

use std::net::IpAddr;

use smallvec::SmallVec;

/// What one source address holds of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Ports held.
    pub held: u32,
    /// Connects unanswered.
    pub wanting: u32,
    /// Open on this node, but silent for so long that the NAT has dropped them: they hold nothing any more.
    pub forgotten: u32,
    /// Of those held: ended before the TCP counters began, as socket tables tell.
    pub(super) ended_before: u32,
    /// The TCP counters account for it.
    pub(super) counted: bool,
}

/// Who holds what, ordered by source address. There may be very many destinations, and most have one source: that one needs no
/// memory of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shares(SmallVec<[(IpAddr, Share); 1]>);

impl Shares {
    /// Those who hold or want something, or believe they do.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, Share)> + '_ {
        self.0.iter().copied().filter(|(_, share)| share.held > 0 || share.wanting > 0 || share.forgotten > 0)
    }

    pub(super) fn get(&self, source: IpAddr) -> Option<Share> {
        let index = self.0.binary_search_by_key(&source, |(address, _)| *address).ok()?;
        self.0.get(index).map(|(_, share)| *share)
    }

    /// The share of a source, made if it is not there.
    pub(super) fn of(&mut self, source: IpAddr) -> &mut Share {
        let index = match self.0.binary_search_by_key(&source, |(address, _)| *address) {
            Ok(index) => index,
            Err(index) => {
                self.0.insert(index, (source, Share::default()));
                index
            }
        };
        &mut self.0.get_mut(index).expect("it is there, or was put there").1
    }
}
