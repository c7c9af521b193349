//! Figures as rows of Markdown.

use std::time::{Duration, Instant};

use crate::process::{Process, own_cpu, system_cpu};

/// Prints the head of a table.
pub fn head(columns: &[&str]) {
    println!("| {} |", columns.join(" | "));
    println!("|{}", "---|".repeat(columns.len()));
}

/// Prints a row.
pub fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

/// A whole number with its thousands apart.
pub fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Times, to be asked for their quantiles. Every one is kept, so none is rounded.
#[derive(Default)]
pub struct Times(Vec<Duration>);

impl FromIterator<Duration> for Times {
    fn from_iter<T: IntoIterator<Item = Duration>>(times: T) -> Self {
        Self(times.into_iter().collect())
    }
}

impl Times {
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Quantiles in milliseconds, each a cell.
    pub fn cells(&mut self, quantiles: &[f64]) -> Vec<String> {
        self.0.sort_unstable();
        let most = self.0.len().saturating_sub(1);
        quantiles
            .iter()
            .map(|q| match self.0.get((most as f64 * q).round() as usize) {
                Some(time) => format!("{:.2}", time.as_secs_f64() * 1000.0),
                None => "none".into(),
            })
            .collect()
    }
}

/// What processes use while something is measured.
pub struct Meter<'a> {
    processes: Vec<&'a Process>,
    before: Vec<Duration>,
    own: Duration,
    system: Duration,
    began: Instant,
}

/// Seconds of CPU and of time.
pub struct Used {
    /// Of each process, in the order in which they were given.
    pub cpu: Vec<f64>,
    /// Of the load.
    pub own: f64,
    /// Of all else on the machine, the system's own work included: what was taken from the measurement.
    pub others: f64,
    pub wall: f64,
}

impl Used {
    /// Parts of a core, each a cell: of some processes, of the load, of all else.
    pub fn cores(&self, some: &[f64]) -> Vec<String> {
        let all = some.iter().chain([&self.own, &self.others]);
        all.map(|cpu| format!("{:.2}", cpu / self.wall)).collect()
    }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

impl<'a> Meter<'a> {
    pub fn start(processes: &[&'a Process]) -> Result<Self> {
        Ok(Self {
            before: processes.iter().map(|p| p.cpu()).collect::<Result<_>>()?,
            processes: processes.to_vec(),
            own: own_cpu()?,
            system: system_cpu()?,
            began: Instant::now(),
        })
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    pub fn stop(self) -> Result<Used> {
        let wall = self.began.elapsed().as_secs_f64();
        let spent = |(process, before): (&&Process, &Duration)| {
            Ok(process.cpu()?.saturating_sub(*before).as_secs_f64())
        };
        let cpu: Vec<f64> = self
            .processes
            .iter()
            .zip(&self.before)
            .map(spent)
            .collect::<Result<_>>()?;
        let own = own_cpu()?.saturating_sub(self.own).as_secs_f64();
        let all = system_cpu()?.saturating_sub(self.system).as_secs_f64();
        Ok(Used {
            others: (all - own - cpu.iter().sum::<f64>()).max(0.0),
            cpu,
            own,
            wall,
        })
    }
}
