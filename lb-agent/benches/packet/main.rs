#![allow(warnings)]
mod bench;
fn main() -> anyhow::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    let mut set = nix::sched::CpuSet::new(); set.set(1)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    for entries in [65536, 262144] {
        for m in bench::micro::measure(entries, 60)? { println!("{:7} {:45} min {:7.1} median {:7.1}", m.entries, m.name, m.min_ns, m.median_ns); }
    }
    Ok(())
}
