//! The table of a run, and the same as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::{Kind, Sample};

/// One kind of answer at one concurrency.
pub struct Cell {
    kind: Kind,
    count: usize,
    direct: Sample,
    market: Option<Through>,
}

/// What the market added.
struct Through {
    sample: Sample,
    buyer_us: f64,
    seller_us: f64,
}

/// A whole run.
#[derive(Default)]
pub struct Report {
    /// In the order of measuring.
    pub cells: Vec<Cell>,
    /// Resident MiB of (buyer, seller) at the end.
    pub memory: Option<(f64, f64)>,
}

/// The value at `percent` of sorted microseconds, in milliseconds.
fn percentile_ms(sorted: &[u32], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |us| f64::from(*us) / 1_000.0)
}

fn per_request_us(before: Duration, after: Duration, requests: usize) -> f64 {
    (after.saturating_sub(before)).as_secs_f64() * 1e6 / requests.max(1) as f64
}

impl Cell {
    /// Makes a cell of direct calls.
    pub fn new(kind: Kind, count: usize, direct: Sample) -> Self {
        Self {
            kind,
            count,
            direct,
            market: None,
        }
    }

    /// Adds what was measured through the market, and the nodes' CPU time before and after.
    pub fn through(
        &mut self,
        sample: Sample,
        before: (Duration, Duration),
        after: (Duration, Duration),
    ) {
        let requests = sample.total_us.len();
        let buyer_us = per_request_us(before.0, after.0, requests);
        let seller_us = per_request_us(before.1, after.1, requests);
        self.market = Some(Through {
            sample,
            buyer_us,
            seller_us,
        });
    }

    fn values(&self) -> Value {
        let of = |sample: &Sample| {
            json!({
                "requests": sample.total_us.len(),
                "failures": sample.failures,
                "per_second": sample.per_second().round(),
                "p50_ms": percentile_ms(&sample.total_us, 50),
                "p99_ms": percentile_ms(&sample.total_us, 99),
                "ttft_p50_ms": percentile_ms(&sample.first_us, 50),
                "ttft_p99_ms": percentile_ms(&sample.first_us, 99),
            })
        };
        let mut cell = json!({
            "kind": format!("{:?}", self.kind).to_lowercase(),
            "concurrency": self.count,
            "direct": of(&self.direct),
        });
        if let Some(market) = &self.market {
            let added = |from: fn(&Sample) -> &[u32], percent| {
                percentile_ms(from(&market.sample), percent)
                    - percentile_ms(from(&self.direct), percent)
            };
            cell["market"] = of(&market.sample);
            cell["added"] = json!({
                "p50_ms": added(|s| &s.total_us, 50),
                "p99_ms": added(|s| &s.total_us, 99),
                "ttft_p50_ms": added(|s| &s.first_us, 50),
                "ttft_p99_ms": added(|s| &s.first_us, 99),
                "buyer_cpu_us": market.buyer_us,
                "seller_cpu_us": market.seller_us,
            });
        }
        cell
    }
}

impl Report {
    /// Returns the number of failed requests.
    pub fn failures(&self) -> u64 {
        let market = |c: &Cell| c.market.as_ref().map_or(0, |m| m.sample.failures);
        self.cells
            .iter()
            .map(|c| c.direct.failures + market(c))
            .sum()
    }

    /// Returns everything as JSON.
    pub fn json(&self) -> Value {
        let memory = self
            .memory
            .map(|(buyer, seller)| json!({"buyer": buyer, "seller": seller}));
        json!({
            "cells": self.cells.iter().map(Cell::values).collect::<Vec<_>>(),
            "rss_mib": memory,
        })
    }

    /// Returns the table that people read; times in milliseconds, CPU in microseconds a request.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{:<6} {:>4} | {:>8} {:>8} {:>8} | {:>8} {:>8} {:>8} {:>8} {:>8} | {:>8} {:>8}\n",
            "answer",
            "c",
            "direct/s",
            "p50",
            "p99",
            "market/s",
            "+p50",
            "+p99",
            "+ttft50",
            "+ttft99",
            "buyer µs",
            "seller µs",
        );
        for cell in &self.cells {
            let values = cell.values();
            let number = |path: &str| values.pointer(path).and_then(Value::as_f64);
            let show = |path: &str, digits: usize| {
                number(path).map_or_else(|| "–".to_owned(), |n| format!("{n:.digits$}"))
            };
            let kind = values["kind"].as_str().unwrap_or_default();
            writeln!(
                out,
                "{kind:<6} {:>4} | {:>8} {:>8} {:>8} | {:>8} {:>8} {:>8} {:>8} {:>8} | {:>8} {:>8}",
                cell.count,
                show("/direct/per_second", 0),
                show("/direct/p50_ms", 2),
                show("/direct/p99_ms", 2),
                show("/market/per_second", 0),
                show("/added/p50_ms", 2),
                show("/added/p99_ms", 2),
                show("/added/ttft_p50_ms", 2),
                show("/added/ttft_p99_ms", 2),
                show("/added/buyer_cpu_us", 0),
                show("/added/seller_cpu_us", 0),
            )
            .unwrap();
        }
        if let Some((buyer, seller)) = self.memory {
            writeln!(out, "memory: buyer {buyer:.0} MiB, seller {seller:.0} MiB").unwrap();
        }
        out
    }
}
