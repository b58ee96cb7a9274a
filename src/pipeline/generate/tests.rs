//! Answers of a tiny model, against the engine without anything around it.

use std::path::Path;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};

use super::*;
use crate::pipeline::engine::{Engine as _, Head, Load, Precision, Span, Stage};
use crate::pipeline::layers::Local;
use crate::pipeline::processor::Processor;
use crate::pipeline::tiny_model::TinyModel;
use crate::pipeline::worker::Worker;

const CONTEXT: usize = 512;

struct Tiny {
    folder: tempfile::TempDir,
    model: Model,
    worker: Worker,
}

fn load(path: &Path) -> Load {
    Load {
        path: path.to_owned(),
        layers: 0..6,
        precision: Precision::Q8,
        positions_max: 4 * CONTEXT,
    }
}

async fn tiny() -> Tiny {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::default().write(folder.path());
    let (path, load) = (folder.path().to_owned(), load(folder.path()));
    let processor = Processor::start(Some(1)).unwrap();
    let stage = move || Ok(Stage::load(&load, &mut |_| {})?);
    let head = move || Ok(Head::load(&path, Precision::Q8)?);
    let worker = Worker::start(processor.clone(), stage).await.unwrap();
    let ends = Ends::start(processor, head).await.unwrap();
    let tokens = Tokens::load(folder.path()).unwrap();
    let layers = Arc::new(Local::new(worker.clone()).unwrap());
    Tiny {
        model: Model::new(tokens, ends, layers, 4 * CONTEXT),
        worker,
        folder,
    }
}

fn request(prompt: &str, answer_max: usize) -> Request {
    Request {
        prompt: prompt.bytes().map(u32::from).collect(),
        answer_max: Some(answer_max),
        sampling: sampling::Settings {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            seed: 1,
        },
        stop: vec![],
        has_tools: false,
        patron: super::super::patron::Patron::default(),
    }
}

async fn run(model: &Model, request: Request) -> (String, Finish, Usage) {
    let mut answer = model.begin(request).await.unwrap();
    let mut all = String::new();
    loop {
        match answer.next().await.unwrap().unwrap() {
            Event::Text(text) => all.push_str(&text),
            Event::Call { .. } => panic!("no tools were given"),
            Event::End { finish, usage } => {
                assert_eq!(answer.next().await, Ok(None));
                return (all, finish, usage);
            }
        }
    }
}

/// The greedy answer by the engine alone: a loop of its own, a batch of its own.
fn alone(path: &Path, prompt: &str, count: usize) -> (String, usize) {
    let mut stage = Stage::load(&load(path), &mut |_| {}).unwrap();
    let head = Head::load(path, Precision::Q8).unwrap();
    let tokens = Tokens::load(path).unwrap();
    let mut text = tokens.detokenizer();
    let mut sampler = Sampler::new(request("", 1).sampling);
    let slot = stage.open(CONTEXT).unwrap();
    let mut next: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let (mut pos, mut all, mut chosen) = (0, String::new(), 0);
    while chosen < count {
        let rows = next.len();
        let out = stage.forward(&[Span { slot, pos, rows }], head.embed(&next).unwrap());
        pos += rows;
        let token = sampler.next(&head.logits(&out.unwrap()).unwrap()).unwrap();
        if tokens.is_end(token) {
            break;
        }
        chosen += 1;
        all.push_str(&text.push(token));
        next = vec![token];
    }
    all.push_str(&text.finish());
    (all, chosen)
}

#[tokio::test]
async fn an_answer_is_the_engines_own_also_among_others() {
    let tiny = tiny().await;
    let prompts = ["Why?", "The quick brown fox", "x", "Sphinx of black quartz"];
    let answers = prompts.map(|prompt| run(&tiny.model, request(prompt, 40)));
    let answers = join_all(answers).await;
    for (prompt, (text, finish, usage)) in prompts.iter().zip(answers) {
        let (expected, count) = alone(tiny.folder.path(), prompt, 40);
        assert_eq!(text, expected);
        let is_full = if count == 40 {
            Finish::Length
        } else {
            Finish::Stop
        };
        let (prompt, answer) = (prompt.len(), count);
        assert_eq!((finish, usage), (is_full, Usage { prompt, answer }));
    }
    // Closing was asked for before this opening, which needs all there is.
    for _ in 0..4 {
        assert!(tiny.worker.open(CONTEXT).await.is_ok());
    }
}

#[tokio::test]
async fn a_stop_sequence_ends_the_answer_before_it() {
    let tiny = tiny().await;
    let (text, _, _) = run(&tiny.model, request("Why?", 60)).await;
    let middle: Vec<char> = text.chars().skip(10).take(3).collect();
    let stop: String = middle.iter().collect();
    let mut asked = request("Why?", 60);
    asked.stop = vec!["nowhere in it".to_owned(), stop.clone()];
    let (cut, finish, usage) = run(&tiny.model, asked).await;
    assert_eq!(
        (cut.as_str(), finish),
        (&text[..text.find(&stop).unwrap()], Finish::Stop)
    );
    assert!(usage.answer < 60);
}

#[tokio::test]
async fn a_seed_repeats_an_answer_and_another_does_not() {
    let tiny = tiny().await;
    let asked = |seed| {
        let mut request = request("Why?", 30);
        request.sampling.temperature = 1.0;
        request.sampling.top_k = Some(50);
        request.sampling.seed = seed;
        run(&tiny.model, request)
    };
    let (first, again, other) = (asked(5).await, asked(5).await, asked(6).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_its_numbers() {
    let tiny = tiny().await;
    let prompt = "a".repeat(500);
    let (context, answer) = (CONTEXT, 13);
    let error = tiny.model.begin(request(&prompt, 13)).await.err();
    let prompt_tokens = 500;
    let expected = GenerateError::Context {
        context,
        prompt: prompt_tokens,
        answer,
    };
    assert_eq!(error, Some(expected));
    // Without a limit the answer has what is left.
    let mut open_end = request(&prompt, 0);
    open_end.answer_max = None;
    let (_, _, usage) = run(&tiny.model, open_end).await;
    assert!(usage.answer <= 12);
    assert_eq!(
        tiny.model.begin(request("", 1)).await.err(),
        Some(GenerateError::Empty)
    );
    let held: Vec<Answer> = join_all((0..4).map(|_| tiny.model.begin(request("a", 511))))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let full = tiny.model.begin(request("a", 1)).await.err();
    assert!(matches!(
        full,
        Some(GenerateError::Pipeline(PipelineError::Full { .. }))
    ));
    drop(held);
    assert!(tiny.model.begin(request("a", 1)).await.is_ok());
}

/// Layers that are lost after so many steps.
struct Lost(usize);

impl Layers for Lost {
    fn open(&self, _: usize) -> BoxFuture<'_, Result<Box<dyn Run>, PipelineError>> {
        let left = self.0;
        async move {
            let run: Box<dyn Run> = Box::new(Lost(left));
            Ok(run)
        }
        .boxed()
    }
}

impl Run for Lost {
    fn step(
        &mut self,
        _: usize,
        rows: Vec<f32>,
        _: StepKind,
    ) -> BoxFuture<'_, Result<Vec<f32>, PipelineError>> {
        let is_lost = self.0 == 0;
        self.0 = self.0.saturating_sub(1);
        async move {
            if is_lost {
                return Err(PipelineError::Lost("nobody has layers 3..5".to_owned()));
            }
            Ok(rows[rows.len() - 64..].to_vec())
        }
        .boxed()
    }
}

#[tokio::test]
async fn a_loss_that_nobody_mends_ends_the_answer_with_an_error() {
    let mut model = tiny().await.model;
    model.layers = Arc::new(Lost(3));
    let mut answer = model.begin(request("Why?", 40)).await.unwrap();
    let error = loop {
        match answer.next().await {
            Ok(event) => assert!(event.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(
        error,
        PipelineError::Lost("nobody has layers 3..5".to_owned())
    );
    assert!(answer.usage.answer <= 3);
}
