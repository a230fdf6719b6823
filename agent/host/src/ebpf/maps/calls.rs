//! What aya has no wrapper for: batches of a map, taking a key out, and, of pinned maps, opening them for reading only and looking
//! up a key. With `iptables::kernel` and `memory` the only modules of headroom-host with unsafe code.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Pod;

// include/uapi/linux/bpf.h.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_F_RDONLY: u32 = 1 << 3;

/// The `BPF_OBJ_*` part of `union bpf_attr`.
#[repr(C)]
struct ObjectAttributes {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// aya opens pinned maps for writing, too; that takes a permission we do not want.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes =
        ObjectAttributes { pathname: path.as_ptr().expose_provenance() as u64, bpf_fd: 0, file_flags: BPF_F_RDONLY };
    // SAFETY: the kernel reads a path that ends with a zero and lives until the call returns, and writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw mut attributes, size_of::<ObjectAttributes>()) };
    match i32::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The single-element part of `union bpf_attr`.
#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;

/// The value of a key, if it is there. In an LRU map it does not count as use (since Linux 5.2).
pub(super) fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &mut V) -> io::Result<bool> {
    match element(BPF_MAP_LOOKUP_ELEM, map, key, value) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes one key out of a hash.
pub(super) fn take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &mut V) -> io::Result<()> {
    element(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key, value)
}

fn element<K: Pod, V: Pod>(command: libc::c_long, map: BorrowedFd<'_>, key: &K, value: &mut V) -> io::Result<()> {
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(key).expose_provenance() as u64,
        value: std::ptr::from_mut(value).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads one key and writes one value, of the map's sizes, which were compared with `K` and `V` when the
    // map was opened; any bytes are a `Pod`. Both live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<ElementAttributes>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What one call brought.
pub(super) struct Read {
    pub(super) count: usize,
    /// Where to go on; `None` at the end.
    pub(super) next: Option<u64>,
}

/// The `batch` part of `union bpf_attr` (`include/uapi/linux/bpf.h`, unchanged since 5.6).
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Reads as many entries as there is room for, from a position on.
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    position: Option<u64>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Read> {
    let room = keys.len().min(values.len());
    let mut next = 0_u64;
    let mut attributes = BatchAttributes {
        in_batch: position.as_ref().map_or(0, |position| std::ptr::from_ref(position).expose_provenance() as u64),
        out_batch: (&raw mut next).expose_provenance() as u64,
        keys: keys.as_mut_ptr().expose_provenance() as u64,
        values: values.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(room).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel writes at most `count` keys and values of the map's sizes, which aya compared with `K` and `V` when
    // the map was taken; any bytes are a `Pod`. A position is four bytes in a hash; `next` and `position` have eight. All
    // live until the call returns.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size_of::<BatchAttributes>())
    };
    let count = usize::try_from(attributes.count).unwrap_or(room).min(room);
    if result == 0 {
        return Ok(Read { count, next: Some(next) });
    }
    match io::Error::last_os_error() {
        // The end; what was read is there.
        error if error.raw_os_error() == Some(libc::ENOENT) => Ok(Read { count, next: None }),
        error => Err(error),
    }
}
