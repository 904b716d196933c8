//! Files, directories and standard input → objects, each knowing where it was written.
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use weft_proto::v1;

use super::{
    problem::Problem,
    read::Reader,
    schema,
    source::{Place, Source},
    tree,
};
use crate::limits::MANIFEST_BYTES_MAX;

/// Objects as an `Apply` takes them, and the place of each of their fields.
#[derive(Debug, Default)]
pub struct Manifests {
    pub objects: Vec<v1::Object>,
    places: BTreeMap<String, Place>,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {path}: {error}")]
    Read { path: String, error: io::Error },
    #[error("{0} is not UTF-8 text")]
    NotText(String),
    #[error("{path} is larger than a manifest can be ({limit} bytes)")]
    TooLarge { path: String, limit: u64 },
    #[error("no manifests (*.yaml, *.yml) in the directory {0}")]
    EmptyDirectory(String),
    /// The manifests are wrong.
    #[error("{} problems in the manifests", .0.len())]
    Wrong(Vec<Problem>),
}

impl Manifests {
    /// The place of a field as the API names it, such as `objects[2].policy.ingress[0].ports[1].port`; of what holds
    /// it, where the field itself was not written.
    pub fn place(&self, path: &str) -> Option<&Place> {
        // A label's key may look like one of the levels that are not written.
        if let Some(place) = self.places.get(path) {
            return Some(place);
        }
        let path = as_written(path);
        let mut path = path.as_str();
        loop {
            if let Some(place) = self.places.get(path) {
                return Some(place);
            }
            path = path.get(..path.rfind(['.', '['])?)?;
        }
    }
}

/// The API's path of a field → the path as the field stands in YAML: without the levels that YAML does not write.
fn as_written(path: &str) -> String {
    let mut written = String::with_capacity(path.len());
    // `labels["app"]` is the same place as `labels.app`.
    let path = path.replace("[\"", ".").replace("\"]", "");
    for segment in path.split('.') {
        let (name, index) = segment.split_at(segment.find('[').unwrap_or(segment.len()));
        if !matches!(name, "metadata" | "items") {
            if !written.is_empty() {
                written.push('.');
            }
            let mut upper = false;
            for letter in name.chars() {
                match letter {
                    '_' => upper = true,
                    letter if upper => {
                        written.push(letter.to_ascii_uppercase());
                        upper = false;
                    }
                    letter => written.push(letter),
                }
            }
        }
        written.push_str(index);
    }
    written
}

/// The objects of every path.
pub fn load(paths: &[PathBuf]) -> Result<Manifests, LoadError> {
    parse(sources(paths)?).map_err(LoadError::Wrong)
}

/// The text of every path; `-` is standard input. A directory gives its `*.yaml` and `*.yml`, by name, not those of
/// directories in it.
pub fn sources(paths: &[PathBuf]) -> Result<Vec<Source>, LoadError> {
    let mut sources = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            sources.push(read("<stdin>".to_owned(), io::stdin().lock())?);
        } else if path.is_dir() {
            for file in directory(path)? {
                sources.push(read_file(&file)?);
            }
        } else {
            sources.push(read_file(path)?);
        }
    }
    Ok(sources)
}

fn directory(path: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let named = || path.display().to_string();
    let failed = |error| LoadError::Read { path: named(), error };
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let manifest = file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if manifest && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() { Err(LoadError::EmptyDirectory(named())) } else { Ok(files) }
}

fn read_file(path: &Path) -> Result<Source, LoadError> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| LoadError::Read { path: name.clone(), error })?;
    read(name, file)
}

fn read(name: String, from: impl Read) -> Result<Source, LoadError> {
    let mut bytes = Vec::new();
    let limit = MANIFEST_BYTES_MAX;
    let read = from.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| LoadError::Read { path: name.clone(), error })?;
    if bytes.len() as u64 > limit {
        return Err(LoadError::TooLarge { path: name, limit });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source { name, text }),
        Err(_) => Err(LoadError::NotText(name)),
    }
}

/// Every document of every source is an object, in order. All problems of all sources are told.
pub fn parse(sources: impl IntoIterator<Item = Source>) -> Result<Manifests, Vec<Problem>> {
    let mut manifests = Manifests::default();
    let mut problems = Vec::new();
    let mut seen: BTreeMap<(String, String), Place> = BTreeMap::new();
    for source in sources {
        let source = Arc::new(source);
        let documents = match tree::documents(&source) {
            Ok(documents) => documents,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        for document in documents {
            let index = manifests.objects.len();
            let mut reader = Reader::new(&source);
            let read = reader.object(&document, index);
            problems.append(&mut reader.problems);
            manifests.places.append(&mut reader.places);
            let Some(object) = read else { continue };
            #[expect(
                clippy::expect_used,
                reason = "the types and the descriptors are generated from the same files"
            )]
            let object: v1::Object = object.transcode_to().expect("the message is an Object");
            problems.extend(twice(&object, manifests.place(&format!("objects[{index}]")), &mut seen));
            manifests.objects.push(object);
        }
    }
    if problems.is_empty() { Ok(manifests) } else { Err(problems) }
}

/// The same kind and name again: which of the two is meant?
fn twice(
    object: &v1::Object,
    place: Option<&Place>,
    seen: &mut BTreeMap<(String, String), Place>,
) -> Option<Problem> {
    let place = place?;
    let (kind, metadata) = schema::metadata_of(object)?;
    let name = &metadata.name;
    let first = seen.insert((kind.to_owned(), name.clone()), place.clone())?;
    let problem =
        Problem::new(place.clone(), format!("{kind} `{name}` is defined twice")).label("again here");
    Some(if Arc::ptr_eq(&first.source, &place.source) {
        problem.also(first.span, "first here")
    } else {
        problem.help(format!("first defined at {first}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_api_are_found_as_they_are_written_in_yaml() {
        assert_eq!(
            as_written("objects[2].policy.ingress.items[0].ports[1].end_port"),
            "objects[2].policy.ingress[0].ports[1].endPort"
        );
        assert_eq!(as_written("objects[0].policy.metadata.labels[\"app\"]"), "objects[0].policy.labels.app");
        assert_eq!(as_written("objects[0].cidrSet.name"), "objects[0].cidrSet.name");
    }
}
