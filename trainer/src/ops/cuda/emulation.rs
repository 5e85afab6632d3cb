//! The kernels compiled as C++ with the system's compiler, and loaded.

use std::cell::Cell;
use std::ffi::{CString, c_int, c_void};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use super::abi::Kernels;

struct Emulation {
    kernels: Kernels,
    reverse: extern "C" fn(c_int),
}

thread_local! {
    static ASKED_FOR: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with the kernels in place of all other forms of the operations, on tensors in main memory.
pub fn instead<T>(f: impl FnOnce() -> T) -> T {
    ASKED_FOR.set(true);
    let result = f();
    ASKED_FOR.set(false);
    result
}

/// Whether this is inside of [`instead`].
pub fn is_asked_for() -> bool {
    ASKED_FOR.get()
}

static EMULATION: OnceLock<Option<Emulation>> = OnceLock::new();

/// The kernels of the emulation; ask [`is_there`] before.
pub(super) fn kernels() -> &'static Kernels {
    &emulation()
        .expect("the emulation was found to be there")
        .kernels
}

/// Whether the kernels could be compiled; if there is no compiler, says that `test` is skipped.
pub fn is_there(test: &str) -> bool {
    let there = emulation().is_some();
    if !there {
        writeln!(std::io::stderr(), "SKIPPED {test}: no C++ compiler (c++)").unwrap();
    }
    there
}

/// Runs the threads of a block from the last to the first, in launches of this thread.
pub fn reverse(reverse: bool) {
    if let Some(emulation) = emulation() {
        (emulation.reverse)(c_int::from(reverse));
    }
}

fn emulation() -> Option<&'static Emulation> {
    EMULATION.get_or_init(build).as_ref()
}

fn build() -> Option<Emulation> {
    Command::new("c++").arg("--version").output().ok()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut sources: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|ext| ext == "cu" || ext == "cpp")
        })
        .collect();
    sources.sort();
    let out = tempfile::tempdir().unwrap();
    let library = out.path().join("kernels.so");
    // Contraction is the compiler's choice; without it the emulation's bits do not depend on the processor.
    let flags = "-std=c++17 -O1 -shared -fPIC -Wall -Werror -Wno-unknown-pragmas -ffp-contract=off -U_FORTIFY_SOURCE";
    let built = Command::new("c++")
        .args(flags.split(' '))
        .arg("-include")
        .arg(folder.join("emulation.h"))
        .arg("-o")
        .arg(&library)
        .args(["-x", "c++"])
        .args(&sources)
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&built.stderr);
    assert!(
        built.status.success(),
        "the kernels do not compile: {messages}"
    );

    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: the library is this project's own and runs nothing when it is loaded; it is never unloaded.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!handle.is_null(), "{} does not load", library.display());
    let address = |name: &str| -> *mut c_void {
        let symbol = CString::new(name).unwrap();
        // SAFETY: a handle that is never closed, and a string that ends in zero.
        let address = unsafe { libc::dlsym(handle, symbol.as_ptr()) };
        assert!(!address.is_null(), "the kernels lack {name}");
        address
    };
    let reverse = address("pairquet_emulation_reverse");
    Some(Emulation {
        kernels: Kernels::load(address),
        // SAFETY: the signature is the one in `kernels/emulation.cpp`.
        reverse: unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(c_int)>(reverse) },
    })
}
