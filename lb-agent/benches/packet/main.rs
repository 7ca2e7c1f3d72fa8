#![allow(warnings)]
mod bench;
use bench::*;
fn main() -> anyhow::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    let mut set = nix::sched::CpuSet::new(); set.set(1)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    if std::env::args().any(|a| a == "micro") {
    for entries in [65536, 262144] {
        for m in bench::micro::measure(entries, 60)? { println!("{:7} {:45} min {:7.1} median {:7.1}", m.entries, m.name, m.min_ns, m.median_ns); }
    }
    return Ok(());
    }
    let quick = std::env::args().any(|a| a == "quick");
    let options = Options { services: if quick {100} else {10_000}, flows: if quick {1024} else {65_536}, rounds: 3, chunks: if quick {5} else {8}, connections: 262_144 };
    let mut kernel = kernel::Kernel::load(65_536)?;
    cluster::Cluster{services: options.services}.fill(&mut kernel);
    for family in cluster::Family::ALL { for proto in wire::Proto::ALL {
        let t = std::time::Instant::now();
        let mut stage = cases::Stage::open(&mut kernel, &options, family, proto)?;
        println!("-- opened in {:?}, absent {:?}", t.elapsed(), stage.absent);
        let mut all = vec![vec![]; stage.cases.len()];
        for _ in 0..options.rounds { for index in 0..stage.cases.len() {
            all[index].push(round::measure(&mut kernel, &mut stage, index, &options)?);
        } }
        for (case, found) in stage.cases.iter().zip(&all) {
            let best = found.iter().min_by(|a,b| (a.min/a.floor).total_cmp(&(b.min/b.floor))).unwrap();
            println!("{:60} min {:7.1} median {:7.1} floor {:5.1} ratio {:5.1} {}", case.name, best.min, best.median, best.floor, best.min/best.floor, if best.dropped {"dropped"} else {""});
        }
        println!("-- {:?}", t.elapsed());
    } }
    Ok(())
}
