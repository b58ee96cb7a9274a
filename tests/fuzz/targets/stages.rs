//! What stages and heads say to each other: the same in any pieces, and never more billed or counted
//! than was computed or asked.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use souk_fuzz::pieces;
use souk_fuzz::pipeline::session::{Chain, Hop, HopId, Shape, StageMachine, StageVerdict};
use souk_fuzz::protocol::stage::{StageDecoder, StageMessage, StageOpen, StageSession, StepKind};
use souk_fuzz::types::PeerId;

/// Bytes of a row.
const ROW: usize = 2;
/// Positions of a session.
const POSITIONS: u32 = 64;

fn messages(chunks: &[Bytes]) -> Vec<(StageMessage, Bytes)> {
    let (mut decoder, mut all) = (StageDecoder::default(), Vec::new());
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => all.push(message),
                Ok(None) => break,
                Err(_) => return all,
            }
        }
    }
    all
}

/// A head says these: no step is computed twice, or beyond what was reserved.
fn as_stage(said: &[(StageMessage, Bytes)]) {
    let mut machine = StageMachine::new(POSITIONS, ROW);
    let mut computed = 0;
    for (message, rows) in said {
        match message {
            StageMessage::Halt(halt) => drop(machine.halt(*halt)),
            StageMessage::Route(route) => drop(machine.route_to(*route)),
            StageMessage::Show { seq, pos, n } => drop(machine.show(*seq, *pos, *n)),
            StageMessage::Step(step) => {
                if let Ok(StageVerdict::Compute(work)) = machine.step(*step, rows) {
                    assert!(work.pos() + work.n() <= POSITIONS);
                    computed += u64::from(work.n());
                    machine
                        .computed(work, rows)
                        .expect("rows of the right size");
                }
            }
            _ => {}
        }
        assert_eq!(machine.rows().total(), computed);
    }
}

/// A stage says these to a head that asked it for four rows, over and over.
fn as_head(said: &[(StageMessage, Bytes)]) {
    let mut chain = Chain::new(4, ROW, Shape::Push, [1; 32]);
    let mut effects = Vec::new();
    let (id, session) = (HopId(0), StageSession([0; 16]));
    let peer = PeerId::random();
    let hop = Hop {
        id,
        first: 0,
        end: 4,
        peer,
        session,
    };
    assert!(chain.join(hop, &mut effects));
    let mut asked = 0;
    for (message, rows) in said {
        if chain.ask(
            0,
            &Bytes::from_static(&[0; 4 * ROW]),
            StepKind::Decode,
            &mut effects,
        ) {
            asked += 4;
        }
        chain.heard(id, message.clone(), rows.clone(), &mut effects);
        let Some(counted) = chain.rows(id) else {
            return;
        };
        assert!(counted.total() <= asked, "{counted:?} of {asked}");
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((seed, data)) = data.split_first() else {
        return;
    };
    let _ = StageOpen::decode(data);
    let said = messages(&[Bytes::copy_from_slice(data)]);
    assert_eq!(said, messages(&pieces(data, *seed)));
    as_stage(&said);
    as_head(&said);
});
