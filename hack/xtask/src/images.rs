//! `cargo xtask images`: makes the sample images as an OCI layout and pushes them to a registry.
//!
//! The images are put together from Debian packages, without a container engine: the same packages give the same
//! digests. In the folder given with `--out` lie
//!
//! ```text
//! layout/        the OCI layout with all images
//! packages/      package lists and packages, by architecture
//! packages.txt   name, version and SHA-256 of every package used
//! stamp.json     what the layout was made from; while it is current nothing is made again
//! ```

mod layer;
mod layout;
pub(crate) mod packages;
mod push;
pub(crate) mod recipe;
mod rootfs;

pub use recipe::{
    BUSYBOX, BUSYBOX_DOCKER, LARGE_GZIP, LARGE_GZIP4, LARGE_INDEX, LARGE_NEXT, LARGE_ZSTD, LARGE_ZSTD4, NGINX, PAUSE,
};

use anyhow::{Context, Result, bail};
use layer::{Compression, Layer};
use layout::{Dialect, Layout};
use oci_spec::image::Descriptor;
use packages::{Archive, Package, Packages};
use recipe::{Architecture, START_NGINX, START_SHELL, START_SLEEP};
use rootfs::{Image, LayerContent};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What to build and where to.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder for the layout, the packages and the stamp (default: target/larder/images)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Make the large image too: 250 MB compressed, in four variants
    #[arg(long)]
    large: bool,
    /// Push what was made to a registry, as http://HOST:PORT
    #[arg(long, value_name = "URL")]
    push: Option<String>,
    /// Make the images again though they are current, from the newest packages
    #[arg(long)]
    refresh: bool,
}

/// Builds, pushes where asked, and names the images.
///
/// # Errors
/// When a package cannot be fetched, a layout cannot be written, or the registry refuses.
pub async fn run(args: Args) -> Result<()> {
    let out = args.out.unwrap_or_else(|| crate::workspace::state().join("images"));
    let set = if args.large { Set::WithLarge } else { Set::Small };
    if args.refresh {
        forget(&out)?;
    }
    let images = {
        let out = out.clone();
        tokio::task::spawn_blocking(move || build(&out, set, &mut |line| say(line))).await??
    };
    for image in &images {
        say(&format!("{} {}", image.name, image.digest));
    }
    if let Some(url) = &args.push {
        push(&out, url, set, &mut |line| say(line)).await?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's output")]
fn say(line: &str) {
    println!("{line}");
}

/// Which images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// nginx and busybox of the documented Deployment.
    Small,
    /// These and the large image in its variants.
    WithLarge,
}

impl Set {
    fn wants(self, name: &str) -> bool {
        self == Self::WithLarge || !LARGE.contains(&name)
    }
}

/// Every variant of the large image.
const LARGE: [&str; 6] = [LARGE_GZIP, LARGE_GZIP4, LARGE_ZSTD, LARGE_ZSTD4, LARGE_NEXT, LARGE_INDEX];

/// An image that is ready in the layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// As a pod names it: with a registry host for the images of the documented Deployment, without one for `samples/..`.
    pub name: String,
    /// Digest of its manifest or index.
    pub digest: String,
}

/// What a layout was made from and what it holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stamp {
    recipe: String,
    images: Vec<Sample>,
}

/// Makes the images of `set` below `out` unless they are there already. `progress` gets one line a step.
///
/// # Errors
/// When packages cannot be fetched or the disk cannot be written.
pub fn build(out: &Path, set: Set, progress: &mut dyn FnMut(&str)) -> Result<Vec<Sample>> {
    let recipe = hex::encode(Sha256::digest(recipe::fingerprint()));
    if let Some(images) = current(out, &recipe, set) {
        return Ok(images);
    }
    let mut bakery = Bakery::open(out, progress)?;
    let mut images = bakery.small()?;
    if set == Set::WithLarge {
        images.extend(bakery.large(&images)?);
    }
    let layout = &bakery.layout;
    layout.name_images(&images)?;
    layout.sweep()?;
    bakery.write_package_list(out)?;
    let images: Vec<Sample> =
        images.into_iter().map(|(name, image)| Sample { name, digest: image.digest().to_string() }).collect();
    let stamp = Stamp { recipe, images: images.clone() };
    fs::write(out.join("stamp.json"), serde_json::to_vec_pretty(&stamp)?).context("write the stamp")?;
    Ok(images)
}

/// Makes the next [`build`] start anew, with fresh package lists.
fn forget(out: &Path) -> Result<()> {
    for path in [out.join("stamp.json"), out.join("packages/amd64/state"), out.join("packages/arm64/state")] {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The images that are there and were made by this recipe, if they are all that `set` asks for.
fn current(out: &Path, recipe: &str, set: Set) -> Option<Vec<Sample>> {
    let stamp: Stamp = serde_json::from_slice(&fs::read(out.join("stamp.json")).ok()?).ok()?;
    let layout = Layout::open(&out.join("layout")).ok()?;
    let complete = set == Set::Small || LARGE.iter().all(|name| stamp.images.iter().any(|image| image.name == *name));
    let here = layout.images().ok()?;
    let as_stamped = stamp.images.iter().all(|image| {
        here.iter().any(|(name, descriptor)| *name == image.name && descriptor.digest().to_string() == image.digest)
    });
    (stamp.recipe == recipe && complete && as_stamped)
        .then(|| stamp.images.into_iter().filter(|image| set.wants(&image.name)).collect())
}

/// Pushes the images of `set` from below `out` to the registry at `url` (`http://host:port`). What the registry has is not
/// sent again. Repositories are the images' names without a registry host.
///
/// # Errors
/// When there is no layout below `out`, or the registry refuses or does not answer.
pub async fn push(out: &Path, url: &str, set: Set, progress: &mut (dyn FnMut(&str) + Send)) -> Result<Vec<Sample>> {
    let layout = Layout::open(&out.join("layout"))?;
    let registry = push::Registry::new(url)?;
    let mut pushed = Vec::new();
    for (name, descriptor) in layout.images()? {
        if !set.wants(&name) {
            continue;
        }
        if registry.push(&layout, &name, &descriptor).await? {
            progress(&format!("pushed {name} to {url}"));
        }
        pushed.push(Sample { name, digest: descriptor.digest().to_string() });
    }
    Ok(pushed)
}

/// Bytes of an image's layers as plain tars, each layer inflated and counted.
///
/// # Errors
/// When there is no such image of one platform below `out`.
pub fn plain_bytes(out: &Path, name: &str) -> Result<u64> {
    let layout = Layout::open(&out.join("layout"))?;
    let images = layout.images()?;
    let (_, image) = images.iter().find(|(there, _)| there == name).with_context(|| format!("there is no {name}"))?;
    // The first is the configuration.
    layout.children(image)?.iter().skip(1).map(|blob| layer::plain_bytes(&layout.blob(blob), blob.media_type())).sum()
}

/// Named images, as a layout's index holds them.
type Named = Vec<(String, Descriptor)>;

/// Everything at hand while images are made.
struct Bakery<'p> {
    layout: Layout,
    native: Architecture,
    packages: Packages,
    /// The other architecture's packages, where this machine's archive has that architecture.
    foreign: Option<Packages>,
    applets: Vec<String>,
    /// Every package used, by architecture and name.
    used: BTreeMap<(String, String), Package>,
    progress: &'p mut dyn FnMut(&str),
}

impl<'p> Bakery<'p> {
    fn open(out: &Path, progress: &'p mut dyn FnMut(&str)) -> Result<Self> {
        let machine = std::env::consts::ARCH;
        let Some(native) = Architecture::of_machine(machine) else {
            bail!("there are no sample images for {machine}");
        };
        let layout = Layout::create(&out.join("layout"))?;
        progress("reading package lists");
        let root = out.join("packages");
        let packages = Packages::open(&root, Archive::OfMachine, native)?;
        let foreign = match Packages::open(&root, Archive::OfMachine, native.other()) {
            Ok(packages) => Some(packages),
            Err(error) => {
                progress(&format!("indexes get one architecture only: {error:#}"));
                None
            }
        };
        Ok(Self { layout, native, packages, foreign, applets: Vec::new(), used: BTreeMap::new(), progress })
    }

    fn fetch(&mut self, architecture: Architecture, names: &[&str]) -> Result<Vec<Package>> {
        let packages = match &self.foreign {
            Some(foreign) if architecture != self.native => foreign,
            _ => &self.packages,
        };
        (self.progress)(&format!("fetching {} and what they need, for {}", names.join(" "), architecture.name()));
        let fetched = packages.fetch(names)?;
        for package in &fetched {
            self.used.insert((architecture.name().to_owned(), package.name.clone()), package.clone());
        }
        Ok(fetched)
    }

    /// nginx and busybox.
    fn small(&mut self) -> Result<Named> {
        let native = self.native;
        let tools = self.fetch(native, &[recipe::TOOLS])?;
        let tools = find(&tools, recipe::TOOLS)?;
        self.applets = rootfs::applets(&rootfs::busybox_program(tools)?)?;
        let layers = self.busybox(native, tools)?;
        let docker = self.layout.manifest(&layers, native, START_SHELL, Dialect::Docker)?;
        let pause = self.layout.manifest(&layers, native, START_SLEEP, Dialect::Oci)?;
        let mut platforms = vec![(native, self.layout.manifest(&layers, native, START_SHELL, Dialect::Oci)?)];
        if self.foreign.is_some() {
            let other = native.other();
            let tools = self.fetch(other, &[recipe::TOOLS])?;
            let layers = self.busybox(other, find(&tools, recipe::TOOLS)?)?;
            platforms.push((other, self.layout.manifest(&layers, other, START_SHELL, Dialect::Oci)?));
        }
        let busybox = self.layout.index(&platforms)?;
        let nginx = self.nginx()?;
        Ok(vec![
            (NGINX.to_owned(), nginx),
            (BUSYBOX.to_owned(), busybox),
            (BUSYBOX_DOCKER.to_owned(), docker),
            (PAUSE.to_owned(), pause),
        ])
    }

    /// One layer: the program and a hard link for each applet in `bin`.
    fn busybox(&mut self, architecture: Architecture, tools: &Package) -> Result<Vec<Layer>> {
        (self.progress)(&format!("making busybox for {}", architecture.name()));
        let program = rootfs::busybox_program(tools)?;
        layer::write(&self.layout.blobs(), &[Compression::Gzip], |tar| {
            let mut image = Image::default();
            let mut content = LayerContent::new(&mut image, tar);
            content.skeleton()?;
            content.file("usr/bin/busybox", 0o755, &program)?;
            for applet in &self.applets {
                content.hard_link(&format!("usr/bin/{applet}"), "usr/bin/busybox")?;
            }
            Ok(())
        })
    }

    /// Two layers: what nginx needs, and nginx itself.
    fn nginx(&mut self) -> Result<Descriptor> {
        let packages = self.fetch(self.native, recipe::NGINX_PACKAGES)?;
        (self.progress)("making nginx");
        let (upper, base): (Vec<_>, Vec<_>) =
            packages.iter().partition(|package| recipe::NGINX_UPPER.contains(&package.name.as_str()));
        let mut image = Image::default();
        let blobs = self.layout.blobs();
        let mut layers = layer::write(&blobs, &[Compression::Gzip], |tar| {
            let mut content = LayerContent::new(&mut image, tar);
            content.skeleton()?;
            for package in base {
                content.package(package)?;
            }
            tools(&mut content, &self.applets)
        })?;
        layers.extend(layer::write(&blobs, &[Compression::Gzip], |tar| {
            let mut content = LayerContent::new(&mut image, tar);
            content.own_files(recipe::NGINX_FILES)?;
            for (path, target) in recipe::NGINX_LINKS {
                content.symlink(path, target)?;
            }
            for package in upper {
                content.package(package)?;
            }
            Ok(())
        })?);
        self.layout.manifest(&layers, self.native, START_NGINX, Dialect::Oci)
    }

    /// The large image: one layer and four, gzip and zstd, one with a small layer on top, and an index.
    fn large(&mut self, small: &[(String, Descriptor)]) -> Result<Named> {
        let mut packages = self.fetch(self.native, recipe::LARGE_PACKAGES)?;
        packages.retain(|package| !recipe::LARGE_LEFT_OUT.contains(&package.name.as_str()));
        (self.progress)("making the large image (a minute or two)");
        let (blobs, applets) = (self.layout.blobs(), &self.applets);
        let (one, four) = std::thread::scope(|scope| {
            let one = scope.spawn(|| large_layers(&blobs, applets, &packages, 1));
            let four = scope.spawn(|| large_layers(&blobs, applets, &packages, 4));
            (join(one), join(four))
        });
        let (one, mut four) = (one?, four?);
        let layout = &self.layout;
        let manifest = |layers: &[Layer]| layout.manifest(layers, self.native, START_SLEEP, Dialect::Oci);
        let mut images = vec![
            (LARGE_GZIP.to_owned(), manifest(&one.gzip)?),
            (LARGE_GZIP4.to_owned(), manifest(&four.gzip)?),
            (LARGE_ZSTD.to_owned(), manifest(&one.zstd)?),
            (LARGE_ZSTD4.to_owned(), manifest(&four.zstd)?),
        ];
        let mut index = vec![(self.native, images[0].1.clone())];
        if let Some((_, busybox)) = small.iter().find(|(name, _)| name == BUSYBOX) {
            let others = layout.children(busybox)?.into_iter().skip(1);
            index.extend(others.map(|manifest| (self.native.other(), manifest)));
        }
        four.gzip.push(self.next_layer()?);
        images.push((LARGE_NEXT.to_owned(), manifest(&four.gzip)?));
        images.push((LARGE_INDEX.to_owned(), layout.index(&index)?));
        Ok(images)
    }

    /// The layer of an application that was built anew: a few files.
    fn next_layer(&self) -> Result<Layer> {
        let layers = layer::write(&self.layout.blobs(), &[Compression::Gzip], |tar| {
            let mut image = Image::default();
            let mut content = LayerContent::new(&mut image, tar);
            for number in 0..64 {
                let path = format!("srv/application/module_{number:02}.py");
                content.file(&path, 0o644, format!("VERSION = 2\nMODULE = {number}\n").repeat(64).as_bytes())?;
            }
            Ok(())
        })?;
        layers.into_iter().next().context("a layer was not written")
    }

    fn write_package_list(&self, out: &Path) -> Result<()> {
        let mut text = String::new();
        for ((architecture, name), package) in &self.used {
            text.push_str(&format!("{architecture} {name} {} {}\n", package.version, package.sha256));
        }
        fs::write(out.join("packages.txt"), text).context("write packages.txt")
    }
}

/// The layers of the large image in both compressions.
#[derive(Debug, Default)]
struct Variants {
    gzip: Vec<Layer>,
    zstd: Vec<Layer>,
}

/// The large image's content in `parts` layers.
fn large_layers(blobs: &Path, applets: &[String], packages: &[Package], parts: usize) -> Result<Variants> {
    let sizes: Vec<u64> = packages.iter().map(|package| package.size).collect();
    let runs = recipe::split_by_weight(&sizes, parts);
    let mut image = Image::default();
    let mut variants = Variants::default();
    for (at, run) in runs.iter().enumerate() {
        let both = layer::write(blobs, &[Compression::Gzip, Compression::Zstd], |tar| {
            let mut content = LayerContent::new(&mut image, tar);
            if at == 0 {
                content.skeleton()?;
            }
            for package in &packages[run.clone()] {
                content.package(package)?;
            }
            if at + 1 == runs.len() { tools(&mut content, applets) } else { Ok(()) }
        })?;
        let mut both = both.into_iter();
        variants.gzip.extend(both.next());
        variants.zstd.extend(both.next());
    }
    Ok(variants)
}

/// A link to busybox for each applet that no package brings itself.
fn tools(content: &mut LayerContent<'_, '_>, applets: &[String]) -> Result<()> {
    for applet in applets {
        content.symlink(&format!("usr/bin/{applet}"), "busybox")?;
    }
    Ok(())
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn find<'a>(packages: &'a [Package], name: &str) -> Result<&'a Package> {
    packages.iter().find(|package| package.name == name).with_context(|| format!("apt-get did not name {name}"))
}
