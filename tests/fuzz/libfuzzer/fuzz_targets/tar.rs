#![no_main]

// The fuzzer's own hook ends the process at panics that are caught as well.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |input: &[u8]| {
    fuzz::must_hold("tar", input);
});
