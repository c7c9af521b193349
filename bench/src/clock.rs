//! Push to screen, by the clock: pushes leave when they are due, whether earlier ones were answered or not, and one that
//! left late counts from when it was due, so nothing that the system did to it is left out (no coordinated omission).

use std::collections::VecDeque;
use std::error::Error;
use std::io::Read as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::EventFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use serde_json::json;

use crate::crowd::Crowd;
use crate::http::Http;
use crate::pushes::Class;
use crate::report::Times;
use crate::runs::Outcome;

const TIMER: u64 = u64::MAX >> 32;
/// How long the last messages may take.
const LAST: Duration = Duration::from_millis(500);

/// What is pushed, and how often, to users who are connected with `format=raw`.
pub struct Clock<'a> {
    pub service: SocketAddr,
    pub key: &'a str,
    pub class: Class,
    pub users: &'a [String],
    /// A second.
    pub rate: u32,
}

/// What came of it.
#[derive(Default)]
pub struct Came {
    /// When each that was seen was due, and how long it took.
    pub seen: Vec<(Instant, Duration)>,
    /// How much later than that it left.
    pub late: Times,
}

impl Clock<'_> {
    /// Pushes as long as `more`, which is asked with how many were; one round over all users comes before, not counted,
    /// and opens what is opened once.
    pub fn run(
        &self,
        crowd: &mut Crowd,
        more: impl Fn(u32) -> bool,
    ) -> Result<Came, Box<dyn Error>> {
        let mut callers = Callers::new(self.service, self.key);
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        crowd.watch(&timer, TIMER, EventFlags::IN)?;
        let mut timer = std::fs::File::from(timer);
        let gap = Duration::from_secs(1) / self.rate;
        let warm = u32::try_from(self.users.len())?;
        let (began, mut next, mut going) = (Instant::now(), 0, true);
        let mut came = Came::default();
        loop {
            going = going && (next < warm || more(next - warm));
            let (due, now) = (gap * next, began.elapsed());
            if !going && now > due + LAST {
                return Ok(came);
            }
            if going && now >= due {
                if next >= warm {
                    came.late.add(now - due);
                }
                let user = &self.users[next as usize % self.users.len()];
                let body = json!({
                    "user_id": user,
                    "message": format!("{next:010}"),
                    "class": self.class.name(),
                });
                callers.send(crowd, &body.to_string())?;
                next += 1;
                continue;
            }
            let wait = if going { due - now } else { LAST / 5 };
            arm(&timer, wait)?;
            crowd.poll(None, |payload| {
                let number = std::str::from_utf8(payload)
                    .ok()
                    .and_then(|t| t.parse().ok());
                if let Some(number) = number.filter(|number| *number >= warm) {
                    let due = began + gap * number;
                    came.seen.push((due, due.elapsed()));
                }
            })?;
            for token in std::mem::take(&mut crowd.ready) {
                match token {
                    TIMER => drop(timer.read(&mut [0; 8])?),
                    caller => callers.read(caller as usize)?,
                }
            }
        }
    }
}

fn arm(timer: &std::fs::File, wait: Duration) -> Result<(), Box<dyn Error>> {
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let value = Timespec {
        tv_sec: wait.as_secs().try_into()?,
        tv_nsec: wait.subsec_nanos().max(1).into(),
    };
    let once = Itimerspec {
        it_interval: zero,
        it_value: value,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

/// Kept connections to a service door, of which the longest idle takes the next push: none waits for another's answer, and
/// none is idle for so long that the door closes it.
struct Callers<'a> {
    service: SocketAddr,
    key: &'a str,
    all: Vec<Http>,
    idle: VecDeque<usize>,
}

impl<'a> Callers<'a> {
    fn new(service: SocketAddr, key: &'a str) -> Self {
        Self {
            service,
            key,
            all: Vec::new(),
            idle: VecDeque::new(),
        }
    }

    fn send(&mut self, crowd: &mut Crowd, body: &str) -> Outcome {
        let caller = match self.idle.pop_front() {
            Some(caller) => caller,
            None => {
                let http = Http::connect(self.service, self.key)?;
                crowd.watch(&http, self.all.len() as u64, EventFlags::IN)?;
                self.all.push(http);
                self.all.len() - 1
            }
        };
        Ok(self.all[caller].send("/v1/push", body)?)
    }

    fn read(&mut self, caller: usize) -> Outcome {
        if self.all[caller].try_answer()?.is_some() {
            self.idle.push_back(caller);
        }
        Ok(())
    }
}
