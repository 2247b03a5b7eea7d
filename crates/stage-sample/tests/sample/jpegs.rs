//! JPEGs of every common kind, whole, cut and damaged (golden/jpeg/make.py).

use std::{fs, path::PathBuf};

use stage_sample::{Orientation, prepare};

/// Names of the golden files, and the fewest bytes of each that Pillow reads.
fn golden() -> Vec<(String, usize)> {
    let line = |line: &str| {
        let [name, _, fewest] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        (name.to_owned(), fewest.parse().unwrap())
    };
    fs::read_to_string(path("whole.tsv")).unwrap().lines().map(line).collect()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/jpeg").join(name)
}

fn read(bytes: &[u8]) -> anyhow::Result<image::RgbImage> {
    let picture = prepare(bytes.to_vec(), Orientation::Ignore, None, None)?;
    Ok(image::load_from_memory(&picture.png)?.into_rgb8())
}

#[test]
fn whole_jpegs_are_those_of_pillow() {
    let files = golden();
    assert_eq!(files.len(), 24);
    for (name, _) in files {
        let expected = image::open(path(&format!("{name}.png"))).unwrap().into_rgb8();
        let bytes = fs::read(path(&format!("{name}.jpg"))).unwrap();
        for found in [read(&bytes), read(&[&bytes[..], b"trailing \xff\xd8 garbage"].concat())] {
            let found = found.unwrap_or_else(|fault| panic!("{name}: {fault:#}"));
            let worst = found.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            let halved = name.contains("420")
                || name.contains("422")
                || ["restarts", "optimised"].iter().any(|k| name.contains(k));
            // Decoders interpolate halved colour differently; on average it is the same.
            let bound = if halved { 16 } else { 3 };
            assert!(worst <= bound && found.dimensions() == expected.dimensions(), "{name}: off by {worst}");
            let sum: u32 = found.iter().zip(expected.iter()).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
            assert!(sum <= found.len() as u32, "{name}: off by {sum} over {} values", found.len());
        }
    }
}

#[test]
fn a_jpeg_cut_anywhere_is_refused_as_pillow_does() {
    for (name, fewest) in golden() {
        let bytes = fs::read(path(&format!("{name}.jpg"))).unwrap();
        for length in 4..fewest {
            let fault = read(&bytes[..length]).expect_err(&format!("{name} cut to {length} of {fewest} bytes"));
            assert!(format!("{fault:#}").contains("cut"), "{name} cut to {length}: {fault:#}");
        }
    }
}

#[test]
fn an_end_marker_before_the_last_block_does_not_make_a_jpeg_whole() {
    for (name, fewest) in golden().iter().filter(|(name, _)| !name.contains("one")) {
        let bytes = fs::read(path(&format!("{name}.jpg"))).unwrap();
        let scan = bytes.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap();
        for part in 1..10 {
            let length = scan + (fewest - scan) * part / 11;
            let cut = [&bytes[..length], &[0xFF, 0xD9]].concat();
            // Between two scans of a progressive file nothing is missing that was promised.
            let between = name.contains("progressive") && read(&cut).is_ok();
            assert!(between || read(&cut).is_err(), "{name}: {length} bytes and an end marker");
            assert!(!between || part > 1, "{name}: {length} bytes and an end marker");
        }
    }
}

#[test]
fn an_orientation_is_ignored_unless_asked_for() {
    let bytes = fs::read(path("exif-odd.jpg")).unwrap();
    let ignored = prepare(bytes.clone(), Orientation::Ignore, None, None).unwrap();
    let applied = prepare(bytes, Orientation::Apply, None, None).unwrap();
    assert_eq!((ignored.height, ignored.width, ignored.turned), (17, 31, true));
    assert_eq!((applied.height, applied.width, applied.turned), (31, 17, true));
    let [ignored, applied] = [ignored, applied].map(|p| image::load_from_memory(&p.png).unwrap().into_rgb8());
    // Orientation 6: what was the lower left corner is the upper left.
    assert_eq!(applied.get_pixel(0, 0), ignored.get_pixel(0, 16));
}

#[test]
fn other_kinds_of_files_are_named() {
    let gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    let arithmetic = [0xFF, 0xD8, 0xFF, 0xC9, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0, 0xFF, 0xD9];
    let cases: [(&[u8], &str); 7] = [
        (gif, "it is GIF"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "it is WebP"),
        (b"BM\x3a\0\0\0", "it is BMP"),
        (b"II*\0\x08\0\0\0", "it is TIFF"),
        (b"<!DOCTYPE html>", "text (HTML"),
        (b"", "it is empty"),
        (&arithmetic, "an arithmetic-coded JPEG"),
    ];
    for (bytes, expected) in cases {
        let fault = format!("{:#}", read(bytes).unwrap_err());
        assert!(fault.contains(expected), "{expected}: {fault}");
    }
    let png = fs::read(path("444.png")).unwrap();
    for cut in [png.len() / 3, png.len() * 4 / 5, png.len() - 20] {
        assert!(read(&png[..cut]).is_err(), "a PNG cut to {cut} of {}", png.len());
    }
}
