#[path = "../../../../lb-ebpf/src/bench/layout.rs"]
pub(crate) mod layout;
pub(crate) mod clock;
pub(crate) mod cluster;
pub(crate) mod cases;
pub(crate) mod flows;
pub(crate) mod kernel;
pub(crate) mod micro;
pub(crate) mod report;
pub(crate) mod round;
pub(crate) mod wire;

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) services: u32,
    pub(crate) flows: u32,
    pub(crate) rounds: usize,
    pub(crate) chunks: usize,
    pub(crate) connections: u32,
}
