//! Decoding, resizing and cropping against PIL and torchvision (golden/make.py).

use std::{
    fs,
    path::{Path, PathBuf},
};

use stage_sample::{Orientation, prepare};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn names(suffix: &str) -> Vec<String> {
    let names = fs::read_dir(golden()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(suffix)).collect();
    names.sort();
    names
}

/// Largest difference of a picture and a golden one, in steps of 8-bit colour.
fn worst(input: &str, resize: Option<u32>, crop: Option<u32>, expected: &str) -> u8 {
    let read = |name: &str| fs::read(golden().join(name)).unwrap();
    let picture = prepare(read(input), Orientation::Ignore, resize, crop).unwrap();
    let found = image::load_from_memory(&picture.png).unwrap().into_rgb8();
    let expected = image::load_from_memory(&read(expected)).unwrap().into_rgb8();
    assert_eq!(found.dimensions(), (picture.width, picture.height));
    assert_eq!(found.dimensions(), expected.dimensions(), "{input}: {resize:?}, {crop:?}");
    found.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn resizing_and_cropping_are_those_of_torchvision() {
    let mut cases = 0;
    for name in names(".png") {
        let parts: Vec<_> = name.split('.').collect();
        let [input, resize, crop, _] = parts[..] else { continue };
        let side = |text: &str| text.parse().ok().filter(|&side: &u32| side > 0);
        let Ok(_) = resize.parse::<u32>() else { continue };
        let worst = worst(&format!("{input}.png"), side(resize), side(crop), &name);
        // Cropping copies pixels; the two resizers round their weights differently.
        let bound = u8::from(resize != "0");
        assert!(worst <= bound, "{name}: off by {worst}");
        cases += 1;
    }
    assert_eq!(cases, 18);
}

#[test]
fn every_kind_of_picture_becomes_the_rgb_of_pil() {
    let goldens = names(".rgb.png");
    assert_eq!(goldens.len(), 15);
    for name in goldens {
        let input = name.trim_end_matches(".rgb.png");
        let worst = worst(input, None, None, &name);
        // JPEG decoders may round differently, and interpolate halved chroma differently at edges.
        let bound = match input {
            "mode-half.jpg" => 5,
            _ => u8::from(input.ends_with(".jpg")),
        };
        assert!(worst <= bound, "{input}: off by {worst}");
    }
}
