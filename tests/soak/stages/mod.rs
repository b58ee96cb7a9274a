//! Contributors of a model's layers die by kill -9 while answers are written, one or two at a time,
//! and come back; now and then two shorter stages are all that is left of a range. A bootstrap node,
//! eight contributors, a head that sells the model and a buyer, each a process.
//!
//! Every answer must read as in peace, whatever died; at the end all books must agree and verify.

mod scene;

use std::time::{Duration, Instant};

use self::scene::{Answer, Scene};
use crate::sim::rng::Rng;

/// Of so many answers one loses two stages.
const TWO_EVERY: u64 = 4;
/// The second dies at most this long after the first, ms: mostly before its loss is mended.
const SECOND_MS: u64 = 400;
/// Answers between two lines of progress.
const REPORT_EVERY: u64 = 50;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Kills.
    pub kills: u64,
    /// Draws the moments and the victims.
    pub seed: u64,
    /// Bytes of each prompt, of which each is a token.
    pub prompt: usize,
    /// Numbers of a row: how much work a token is.
    pub hidden: usize,
}

#[derive(Default)]
struct Tally {
    kills: u64,
    pairs: u64,
    answers: u64,
    struck: u64,
    differ: u64,
    tokens: u64,
    /// The longest that an answer's reader waited for its next event after a kill: what was on its
    /// way comes at once, what the dead stage had to compute comes late.
    recoveries: Vec<Duration>,
}

impl Tally {
    fn recovered(&self, percent: usize) -> Duration {
        let last = self.recoveries.len().saturating_sub(1);
        let at = last * percent / 100;
        self.recoveries.get(at).copied().unwrap_or_default()
    }
    fn line(&mut self) -> String {
        self.recoveries.sort();
        format!(
            "kills={} in_pairs={} answers={} struck={} differ={} tokens={} recovery_p50={:?} p90={:?} p99={:?} max={:?}",
            self.kills,
            2 * self.pairs,
            self.answers,
            self.struck,
            self.differ,
            self.tokens,
            self.recovered(50),
            self.recovered(90),
            self.recovered(99),
            self.recovered(100),
        )
    }
}

/// Runs the experiment; gives its line of figures.
pub async fn run(plan: Plan) -> Result<String, String> {
    let began = Instant::now();
    let mut rng = Rng::new(plan.seed);
    let mut scene = Scene::start(plan.prompt, plan.hidden).await;
    let mut peace = vec![];
    for prompt in 0..scene::PROMPTS {
        let first = scene.ask(prompt).await?.finish().await?;
        let again = scene.ask(prompt).await?.finish().await?;
        if first.text != again.text || first.text.is_empty() {
            return Err(format!("in peace: {:?} and {:?}", first.text, again.text));
        }
        peace.push(again);
    }
    let lasts = peace.iter().map(|answer| answer.took).max();
    let lasts = u64::try_from(lasts.unwrap_or_default().as_millis()).unwrap_or(1);
    let mut tally = Tally::default();
    while tally.kills < plan.kills {
        let prompt = rng.next() as usize % scene::PROMPTS;
        let answer = under_fire(&mut scene, &mut rng, prompt, lasts, &mut tally).await?;
        tally.answers += 1;
        tally.tokens += answer.tokens;
        if answer.text != peace[prompt].text {
            tally.differ += 1;
            return Err(format!(
                "an answer differs after {} kills: {:?} instead of {:?}\n{}",
                tally.kills,
                answer.text,
                peace[prompt].text,
                scene.last_words()
            ));
        }
        if tally.answers % REPORT_EVERY == 0 {
            eprintln!("{}", tally.line());
        }
    }
    let sums = scene.settle().await?;
    Ok(format!(
        "stages: {} prompt={} {sums} s={}",
        tally.line(),
        plan.prompt,
        began.elapsed().as_secs()
    ))
}

/// One answer during which one or two of its stages die.
async fn under_fire(
    scene: &mut Scene,
    rng: &mut Rng,
    prompt: usize,
    lasts: u64,
    tally: &mut Tally,
) -> Result<Answer, String> {
    let mut stream = scene.ask(prompt).await?;
    let mut at = stream.since() + Duration::from_millis(rng.between(0, lasts));
    let mut left = 1 + u64::from(rng.next().is_multiple_of(TWO_EVERY));
    let mut deaths: Vec<Instant> = vec![];
    let planned = left;
    loop {
        if left == 0 {
            break;
        }
        let wait = at.saturating_sub(stream.since());
        let is_over = tokio::select! {
            is_over = stream.next() => is_over,
            () = tokio::time::sleep(wait) => {
                match scene.kill_one_of_its(rng).await {
                    Some(death) => {
                        deaths.push(death);
                        tally.kills += 1;
                        left -= 1;
                        at = stream.since() + Duration::from_millis(rng.between(0, SECOND_MS));
                    }
                    // Nobody could die without taking the last of some layers along.
                    None => left = 0,
                }
                false
            }
        };
        if is_over {
            break;
        }
    }
    tally.pairs += u64::from(planned == 2 && deaths.len() == 2);
    let answer = stream.finish().await?;
    for death in &deaths {
        let (mut last, mut longest) = (*death, Duration::ZERO);
        for event in answer.events.iter().filter(|event| *event > death) {
            longest = longest.max(*event - last);
            last = *event;
        }
        tally.recoveries.push(longest);
    }
    tally.struck += u64::from(!deaths.is_empty());
    scene.raise_the_dead().await;
    Ok(answer)
}
