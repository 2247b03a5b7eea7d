//! Files of the hub in whole runs: fetched where a table needs them and the cache lacks them, and not otherwise.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

use pipeline_tests::Project;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub on the loopback device, and what it was asked for: `HEAD /...` and `GET /...`.
struct Hub {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// Serves files by the ends of their paths: bytes, and the digest that it states.
    fn serve(files: HashMap<String, (Vec<u8>, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (files, noted) = (Arc::new(files), Arc::clone(&asked));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (files, noted) = (Arc::clone(&files), Arc::clone(&noted));
                thread::spawn(move || answer(&mut stream.unwrap(), &files, &noted));
            }
        });
        Self { endpoint, asked }
    }

    /// Paths that were downloaded since the last call, sorted.
    fn downloads(&self) -> Vec<String> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        let mut paths: Vec<String> =
            asked.iter().filter_map(|line| Some(line.strip_prefix("GET ")?.rsplit('/').next()?.to_owned())).collect();
        paths.sort();
        paths
    }
}

fn answer(stream: &mut TcpStream, files: &HashMap<String, (Vec<u8>, String)>, noted: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(request)) = lines.next() else { return };
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let asked = request.trim_end_matches(" HTTP/1.1").to_owned();
    let found = files.iter().find(|(path, _)| asked.ends_with(&format!("/resolve/{COMMIT}/{path}")));
    noted.lock().unwrap().push(asked);
    let none = (b"none".to_vec(), "none".to_owned());
    let (status, (body, tag)) = found.map_or(("404 Not Found", &none), |(_, file)| ("200 OK", file));
    let headers = format!("ETag: \"{tag}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close");
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n\r\n", body.len());
    if request.starts_with("GET") {
        let _ = stream.write_all(body);
    }
}

/// A project whose pipelines `one` and `two` read different images of one file of the hub, and weights of another.
struct Bench {
    project: Project,
    hub: Hub,
}

impl Bench {
    fn new() -> Self {
        let project = Project::finished();
        let table = project.parts("finetune").remove(0);
        let weights = fs::read_dir(project.path().join(table.parent().unwrap())).unwrap();
        let weights = weights
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|e| e == "safetensors"));
        let sample = project.parts("sample").into_iter().find(|part| part.to_string_lossy().contains("test")).unwrap();
        let file = |path: PathBuf| (fs::read(&path).unwrap(), artifact::sha256(&path).unwrap());
        let files = [("images.parquet", project.path().join(sample)), ("net.safetensors", weights.unwrap())];
        let hub = Hub::serve(files.map(|(name, path)| (name.to_owned(), file(path))).into());
        project.write(
            "pipelines/sources/mine.toml",
            format!(
                "[[images.mine.from]]\nname = \"hub\"\nrepo = \"a/b\"\nrevision = \"{COMMIT}\"\n\
                 files = [{{ path = \"images.parquet\" }}]\n\
                 [weights.mine]\nmodel = {{ name = \"cifar-resnet\", depth = 8, width = 4 }}\n\
                 [[weights.mine.from]]\nname = \"hub\"\nrepo = \"a/b\"\nrevision = \"{COMMIT}\"\nfile = \"net.safetensors\"\n"
            ),
        );
        let smoke = String::from_utf8(project.bytes("pipelines/smoke.toml")).unwrap();
        let text = smoke
            .replace("source = \"embedded-test\"", "source = \"mine\"")
            .replace("seed = 1\n", "seed = 1\nweights = { source = \"mine\" }\n");
        project.write("pipelines/one.toml", &text);
        project.write("pipelines/two.toml", text.replace("limit = 16", "limit = 12"));
        Self { project, hub }
    }

    fn make(&self, arguments: &[&str]) -> Command {
        let mut make = self.project.command(arguments);
        for variable in ["HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "OFFLINE", "HF_HOME"] {
            make.env_remove(variable);
        }
        make.env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HUB_CACHE", self.project.path().join("cache"));
        make
    }

    fn output(&self, arguments: &[&str]) -> String {
        let output = self.make(arguments).output().unwrap();
        let text = both(&output);
        assert!(output.status.success(), "make {arguments:?}:\n{text}");
        text
    }

    fn failure(&self, arguments: &[&str]) -> String {
        let output = self.make(arguments).output().unwrap();
        let text = both(&output);
        assert!(!output.status.success(), "make {arguments:?} succeeded:\n{text}");
        text
    }
}

fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_file_of_the_hub_is_fetched_once_and_only_where_a_table_needs_it() {
    let bench = Bench::new();
    let listed = bench.output(&["list", "P=one"]);
    let fetches = listed.split("\n\n").next().unwrap();
    assert_eq!(fetches.lines().filter(|line| line.contains("/fetch --out data/fetch/")).count(), 2, "{listed}");
    assert_eq!(fetches.lines().count(), 2, "what is fetched comes first: {listed}");

    // Other pipelines do not fetch for this one; a dry run says what it would do.
    assert!(bench.output(&["smoke"]).contains("Nothing to be done"));
    let binaries = format!("BIN={}", pipeline_tests::binaries().display());
    let dry = bench.make(&[]).args(["-n", "one", "two", "BUILD=true", &binaries]).output().unwrap();
    let dry = both(&dry);
    assert_eq!(dry.matches("true --bin fetch\n").count(), 1, "{dry}");
    assert_eq!((dry.matches("/fetch --out").count(), bench.hub.downloads().len()), (2, 0), "{dry}");

    let told = bench.failure(&["one", "OFFLINE=1"]);
    for word in ["not in the cache", "OFFLINE forbids to use the network", "copy ", "Error 3"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    let told = bench.failure(&["two", "HF_ENDPOINT=http://127.0.0.1:9"]);
    assert!(told.contains("no answer: check the network"), "{told}");

    // Two samples of one file, side by side.
    bench.output(&["-j4", "one", "two"]);
    assert_eq!(bench.hub.downloads(), ["images.parquet", "net.safetensors"]);
    let receipts = fs::read_dir(bench.project.path().join("data/fetch")).unwrap();
    let receipts: Vec<String> = receipts.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    assert_eq!(receipts.len(), 2);
    assert!(
        receipts.iter().all(|text| text.contains(COMMIT) && text.contains("\"sha256\"") && text.contains("\"size\""))
    );
}

#[test]
fn what_is_made_stays_made_when_the_cache_has_gone() {
    let bench = Bench::new();
    bench.output(&["one"]);
    assert_eq!(bench.hub.downloads().len(), 2);
    assert!(bench.output(&["one"]).contains("Nothing to be done"));
    assert!(!bench.output(&["gc"]).contains("data/fetch"), "receipts of planned files are no garbage");
    fs::rename(bench.project.path().join("cache"), bench.project.path().join("elsewhere")).unwrap();
    assert!(bench.output(&["one"]).contains("Nothing to be done"));
    // A sample that is made again needs its file again, and only that.
    let sample =
        bench.project.parts("sample").into_iter().find(|part| part.to_string_lossy().contains("mine--")).unwrap();
    let bytes = bench.project.bytes(&sample);
    bench.project.delete(&sample);
    bench.output(&["one"]);
    assert_eq!(bench.hub.downloads(), ["images.parquet"]);
    assert_eq!(bench.project.bytes(&sample), bytes);
    // With the old cache in its place, nothing is fetched, and no program that could is asked for.
    fs::remove_dir_all(bench.project.path().join("cache")).unwrap();
    fs::rename(bench.project.path().join("elsewhere"), bench.project.path().join("cache")).unwrap();
    bench.project.delete(&sample);
    assert!(!bench.output(&["-n", "one"]).contains("fetch"));
    bench.output(&["one", "OFFLINE=1"]);
    assert!(bench.hub.downloads().is_empty());
    bench.output(&["verify"]);
    fs::remove_dir_all(bench.project.path().join("cache/datasets--a--b")).unwrap();
    let told = bench.failure(&["verify"]);
    let command = format!("fetch hf://datasets/a/b@{COMMIT}/images.parquet brings it back");
    assert!(told.contains(&command) && told.contains("1 not as recorded"), "{told}");
}
