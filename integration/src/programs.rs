//! Where the programs are: ours where `make` gathers them, the peers where Debian puts them.

use std::path::{Path, PathBuf};

/// The top of the checkout.
pub fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above").to_path_buf()
}

/// The directory of our programs: `STRATA_BIN`, else where `make build` puts them.
pub fn ours() -> PathBuf {
    std::env::var_os("STRATA_BIN").map_or_else(|| top().join("target/strata/bin"), PathBuf::from)
}

/// The directory of the images that `make images` builds.
pub fn images() -> PathBuf {
    std::env::var_os("STRATA_IMAGES").map_or_else(|| top().join("target/images"), PathBuf::from)
}

/// A program of a newer containerd (2.x), which `make setup` unpacks beside the checkout's own programs.
pub fn newer_peer(name: &str) -> Option<PathBuf> {
    let path = top().join("target/peers/containerd.root/usr/bin").join(name);
    path.exists().then_some(path)
}

/// A program of ours that must be there before anything can be tested, if one is missing.
pub fn missing_of_ours() -> Option<PathBuf> {
    ["strata", "engined", "shimd", "containerd-shim-strata-v1", "lowrun"]
        .iter()
        .map(|name| ours().join(name))
        .find(|path| !path.exists())
}

/// A peer's program. Debian's own comes before one of the same name that somebody put into /usr/local.
pub fn peer(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
}
