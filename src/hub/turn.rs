use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::command::Command;
use super::session::SessionKey;
use super::shard::Shard;
use super::state::State;
use super::wheel::TICK;

/// Commands taken from the queue before anything is written.
const COMMANDS_PER_TURN: usize = 256;
/// Sessions written to before other work of the shard has its turn.
const WRITES_PER_YIELD: usize = 256;
/// Below this share of busy time a shard writes at once; above [`LOAD_FULL`] the window is all of `coalesce`.
const LOAD_QUIET: f64 = 0.3;
const LOAD_FULL: f64 = 0.7;
/// Over how long the load is measured.
const LOAD_SPAN: Duration = Duration::from_millis(20);

impl Shard {
    /// The shard's loop. Its inputs: commands of the router; work that readers left; a tick of the wheel; the window of
    /// busy sessions.
    pub(super) async fn run(self: Rc<Self>, mut commands: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(COMMANDS_PER_TURN);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut load = Load::new();
        let mut window: Vec<SessionKey> = Vec::new();
        let mut window_until: Option<tokio::time::Instant> = None;
        loop {
            tokio::select! {
                count = commands.recv_many(&mut batch, COMMANDS_PER_TURN) => if count == 0 { return },
                () = self.work.notified() => {}
                _ = tick.tick() => self.turn_wheel(),
                () = until(window_until) => {
                    window_until = None;
                    self.state.borrow_mut().dirty.append(&mut window);
                }
            }
            load.busy_from(Instant::now());
            for command in batch.drain(..) {
                if matches!(command, Command::End) {
                    return;
                }
                self.obey(command);
            }
            let span = load.window(self.hub.config.coalesce);
            self.flush_dirty(span, &mut window).await;
            if !window.is_empty() && window_until.is_none() {
                window_until = Some(tokio::time::Instant::now() + span);
            }
            load.idle_from(Instant::now());
            self.hub.loads[self.index].store(load.thousandths(), Ordering::Relaxed);
        }
    }

    fn turn_wheel(self: &Rc<Self>) {
        let mut due = Vec::new();
        let now = Instant::now();
        let mut state = self.state.borrow_mut();
        state.wheel.turn(now, &mut due);
        let tick = state.wheel.tick(now);
        for (key, armed) in due {
            state.due(key, armed, tick);
        }
    }

    /// Writes to every dirty session, but for those that were written to within the window: they wait for its end.
    async fn flush_dirty(self: &Rc<Self>, span: Duration, window: &mut Vec<SessionKey>) {
        let span = span.as_millis() as u32;
        let dirty = std::mem::take(&mut self.state.borrow_mut().dirty);
        for chunk in dirty.chunks(WRITES_PER_YIELD) {
            {
                let mut state = self.state.borrow_mut();
                let millis = state.millis(Instant::now());
                for &key in chunk {
                    let Some(session) = state.get(key) else {
                        continue;
                    };
                    if span > 0 && millis.wrapping_sub(session.last_write) < span {
                        window.push(key);
                        continue;
                    }
                    session.queued = false;
                    state.flush(key);
                }
                self.await_stalled(&mut state);
                state.settle();
            }
            if chunk.len() == WRITES_PER_YIELD {
                tokio::task::yield_now().await;
            }
        }
        let mut state = self.state.borrow_mut();
        if state.dirty.is_empty() {
            let mut dirty = dirty;
            dirty.clear();
            if dirty.capacity() <= 4096 {
                state.dirty = dirty;
            }
        }
        self.await_stalled(&mut state);
        // What was written outside of the loop, too: whoever wrote there has woken it.
        state.settle();
    }

    /// Watches sockets that took less than was there.
    fn await_stalled(self: &Rc<Self>, state: &mut State) {
        while let Some(key) = state.stalled.pop() {
            // It may stand here twice: a second wait would outlive it.
            let Some(session) = state.get(key).filter(|s| s.blocked.is_none()) else {
                continue;
            };
            let Some(stream) = session.transport.socket().cloned() else {
                continue;
            };
            let shard = self.clone();
            let task = spawn_local(async move {
                // An error shows at the next write.
                let _ = stream.writable().await;
                let mut state = shard.state.borrow_mut();
                if let Some(session) = state.get(key) {
                    session.blocked = None;
                }
                state.flush(key);
                shard.work.notify_one();
            });
            session.blocked = Some(task.abort_handle());
        }
    }
}

async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// How busy the shard's loop is, from 0 to 1, over the last [`LOAD_SPAN`] or two.
struct Load {
    since: Instant,
    busy: Duration,
    idle: Duration,
}

impl Load {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            busy: Duration::ZERO,
            idle: LOAD_SPAN,
        }
    }

    fn busy_from(&mut self, now: Instant) {
        self.idle += now.saturating_duration_since(self.since);
        self.since = now;
    }

    fn idle_from(&mut self, now: Instant) {
        self.busy += now.saturating_duration_since(self.since);
        self.since = now;
        // Older time counts half, and half again.
        while self.busy + self.idle > LOAD_SPAN * 2 {
            self.busy /= 2;
            self.idle /= 2;
        }
    }

    fn busy_part(&self) -> f64 {
        let busy = self.busy.as_secs_f64();
        busy / (busy + self.idle.as_secs_f64())
    }

    fn thousandths(&self) -> u16 {
        (self.busy_part() * 1000.0) as u16
    }

    /// The window opens by load: none on a quiet shard, all of `coalesce` on a busy one.
    fn window(&self, coalesce: Duration) -> Duration {
        let load = self.busy_part();
        coalesce.mul_f64(((load - LOAD_QUIET) / (LOAD_FULL - LOAD_QUIET)).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_by_load_and_shuts_when_it_is_quiet() {
        let coalesce = Duration::from_millis(4);
        let mut load = Load::new();
        let mut now = load.since;
        assert_eq!(load.window(coalesce), Duration::ZERO);
        for _ in 0..100 {
            load.busy_from(now);
            now += Duration::from_millis(5);
            load.idle_from(now);
        }
        assert_eq!(load.window(coalesce), coalesce);
        now += Duration::from_secs(1);
        load.busy_from(now);
        load.idle_from(now);
        assert_eq!(load.window(coalesce), Duration::ZERO);
    }
}
