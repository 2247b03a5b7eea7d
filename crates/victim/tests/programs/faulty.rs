//! The plain program, failing on purpose: `faulty FAULT WHEN MARKER [network|transformation] [CLASSES]`.
//!
//! It fails at the WHEN-th request after the hello of each of its lives, the first being 1, and, where MARKER is the path of a
//! file and not `-`, in one life only: the file says that it has failed.

#[path = "../../examples/plain/play.rs"]
mod play;
#[path = "../../examples/plain/wire.rs"]
mod wire;

use std::{env, fs, io::Write as _, path::Path, process, thread, time::Duration};

use wire::{Message, Pipe, Tensor};

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let word = |i: usize| words.get(i).map_or("", String::as_str);
    let (fault, when, marker) = (word(0), word(1).parse::<u64>().unwrap(), word(2));
    let mut player = play::Player::new(word(3) == "transformation", word(4).parse().unwrap_or(10));
    let mut pipe = Pipe::open();
    let mut asked = 0;
    while let Some(request) = pipe.read() {
        let mut reply = player.answer(&request);
        if request.fact("op") == "hello" {
            match fault {
                "version" => reply = reply.with("protocol", "2.0"),
                "no-hello" => process::exit(7),
                "certain" => reply = reply.with("random", "false"),
                "batch-draws" => reply = reply.with("draws", "batch"),
                "range" => reply = reply.with("range", "-1,1"),
                "square" => reply = reply.with("shape", "3,4,4"),
                "no-gradient" => reply = reply.with("operations", "logits,apply"),
                "few" => reply = reply.with("batch", word(1)),
                _ => {}
            }
        } else {
            asked += 1;
            let once = marker != "-";
            if fault == "now-and-then" {
                now_and_then(asked, when, marker, &mut pipe, &reply);
            } else if asked == when && !(once && Path::new(marker).exists()) {
                if once {
                    fs::write(marker, "failed").unwrap();
                }
                reply = fail(fault, &request, reply, &mut pipe);
            }
        }
        if pipe.write(&reply).is_err() {
            return;
        }
    }
}

/// Dies at random, but never twice within one request and its repetition; the file counts.
fn now_and_then(asked: u64, when: u64, marker: &str, pipe: &mut Pipe, reply: &Message) {
    // Another life, another moment: the number of the process is as good as a die.
    let moment = u64::from(process::id().wrapping_mul(0x9E37_79B9) >> 16) % when + 4;
    if asked < moment {
        return;
    }
    let mut file = fs::OpenOptions::new().append(true).create(true).open(marker).unwrap();
    file.write_all(b"x").unwrap();
    match process::id() % 3 {
        0 => process::abort(),
        1 => {
            // Half of an answer.
            let _ = pipe.output.write_all(&1_000_000u64.to_le_bytes());
            let _ = pipe.output.write_all(&[1; 1000]);
        }
        _ => {
            let _ = pipe.write(reply);
        }
    }
    process::exit(1);
}

fn fail(fault: &str, request: &Message, reply: Message, pipe: &mut Pipe) -> Message {
    println!("about to {fault}");
    match fault {
        "die" => process::exit(3),
        "abort" => process::abort(),
        "hang" => loop {
            thread::sleep(Duration::from_secs(1));
        },
        "close" => {
            // What it has started holds its output open.
            process::Command::new("sleep").arg("60").spawn().unwrap();
            process::exit(0)
        }
        "nan" | "infinity" => {
            change(reply, |words| words[0] = if fault == "nan" { f32::NAN } else { f32::INFINITY }.to_bits())
        }
        "shape" => {
            let mut reply = reply;
            reply.tensors.values_mut().for_each(|tensor| {
                tensor.shape.push(1);
            });
            reply
        }
        "nothing" => Message { tensors: Default::default(), ..reply },
        "number" => reply.with("id", "999999"),
        "operation" => reply.with("op", "hello"),
        "error" => request.reply().with("op", "error").with("text", "out of ideas"),
        "garbage" => {
            pipe.output.write_all(&64u64.to_le_bytes()).unwrap();
            pipe.output.write_all(&[b'?'; 64]).unwrap();
            reply
        }
        "length" => {
            pipe.output.write_all(b"print to the wrong file").unwrap();
            reply
        }
        "half" => {
            pipe.output.write_all(&1000u64.to_le_bytes()).unwrap();
            process::exit(0)
        }
        "memory" => {
            let taken: Vec<u8> = std::hint::black_box((0..400 << 20).map(|i: u32| i as u8).collect());
            thread::sleep(Duration::from_secs(20));
            println!("{}", taken.len());
            reply
        }
        "noise" => {
            (0..100_000).for_each(|line| println!("line {line} of much that nobody reads"));
            print!("{}", "x".repeat(1 << 20));
            reply
        }
        _ => reply,
    }
}

fn change(mut reply: Message, how: impl Fn(&mut Vec<u32>)) -> Message {
    reply.tensors.values_mut().for_each(|tensor: &mut Tensor| how(&mut tensor.words));
    reply
}
