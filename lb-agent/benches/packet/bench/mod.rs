#[path = "../../../../lb-ebpf/src/bench/layout.rs"]
pub(crate) mod layout;
pub(crate) mod clock;
pub(crate) mod cluster;
pub(crate) mod kernel;
pub(crate) mod micro;
pub(crate) mod report;
pub(crate) mod wire;
