//! Writes layers: one plain tar stream in, one or more compressed blobs named by their digests out.
//!
//! The same tar bytes feed every compression asked for, so variants of an image differ in nothing else.

use anyhow::{Context, Result};
use flate2::GzBuilder;
use flate2::write::GzEncoder;
use oci_spec::image::{Descriptor, MediaType};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Encoders are fed in pieces of this many bytes: what deflate writes depends on where its input was cut, and packages
/// arrive through a pipe that cuts anywhere.
const PIECE: usize = 256 * 1024;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// gzip, level 6, no time stamp.
    Gzip,
    /// zstd, level 3.
    Zstd,
}

/// A finished layer.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// As a manifest names it.
    pub(super) descriptor: Descriptor,
    /// `sha256:<hex>` of the plain tar, as a config names it.
    pub(super) diff_id: String,
}

/// Writes one layer in each of `compressions` into `blobs` (the folder `blobs/sha256` of a layout) and returns them in
/// that order. `fill` writes the entries.
pub(super) fn write(
    blobs: &Path,
    compressions: &[Compression],
    fill: impl FnOnce(&mut tar::Builder<&mut Fanout>) -> Result<()>,
) -> Result<Vec<Layer>> {
    let sinks = compressions.iter().map(|compression| Sink::create(blobs, *compression)).collect::<Result<Vec<_>>>()?;
    let mut fanout = Fanout { plain: Sha256::new(), piece: Vec::with_capacity(PIECE), sinks };
    let mut builder = tar::Builder::new(&mut fanout);
    fill(&mut builder)?;
    builder.finish().context("finish a layer's tar")?;
    drop(builder);
    fanout.encode_piece()?;
    let diff_id = format!("sha256:{}", hex::encode(fanout.plain.finalize()));
    fanout.sinks.into_iter().map(|sink| sink.finish(blobs, &diff_id)).collect()
}

/// Bytes of a layer as a plain tar.
pub(super) fn plain_bytes(blob: &Path, media_type: &MediaType) -> Result<u64> {
    let file = File::open(blob).with_context(|| format!("open {}", blob.display()))?;
    let count = if media_type.to_string().ends_with("zstd") {
        io::copy(&mut zstd::Decoder::new(file)?, &mut io::sink())
    } else {
        io::copy(&mut flate2::read::GzDecoder::new(io::BufReader::new(file)), &mut io::sink())
    };
    count.with_context(|| format!("inflate {}", blob.display()))
}

/// Hashes the plain bytes and hands them to every sink.
#[derive(Debug)]
pub(super) struct Fanout {
    plain: Sha256,
    piece: Vec<u8>,
    sinks: Vec<Sink>,
}

impl Fanout {
    fn encode_piece(&mut self) -> io::Result<()> {
        self.plain.update(&self.piece);
        for sink in &mut self.sinks {
            match &mut sink.encoder {
                Encoder::Gzip(encoder) => encoder.write_all(&self.piece)?,
                Encoder::Zstd(encoder) => encoder.write_all(&self.piece)?,
            }
        }
        self.piece.clear();
        Ok(())
    }
}

impl Write for Fanout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE {
            self.encode_piece()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Sink {
    encoder: Encoder,
    partial: PathBuf,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("partial", &self.partial).finish_non_exhaustive()
    }
}

enum Encoder {
    Gzip(GzEncoder<Blob>),
    Zstd(zstd::stream::write::Encoder<'static, Blob>),
}

impl Sink {
    fn create(blobs: &Path, compression: Compression) -> Result<Self> {
        let temporary = tempfile::NamedTempFile::new_in(blobs).context("create a blob")?;
        let (file, partial) = temporary.keep().context("create a blob")?;
        let blob = Blob { file: BufWriter::with_capacity(1 << 20, file), hasher: Sha256::new(), size: 0 };
        let encoder = match compression {
            Compression::Gzip => Encoder::Gzip(GzBuilder::new().mtime(0).write(blob, flate2::Compression::new(6))),
            Compression::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(blob, 3)?),
        };
        Ok(Self { encoder, partial })
    }

    fn finish(self, blobs: &Path, diff_id: &str) -> Result<Layer> {
        let (blob, media_type) = match self.encoder {
            Encoder::Gzip(encoder) => (encoder.finish()?, MediaType::ImageLayerGzip),
            Encoder::Zstd(encoder) => (encoder.finish()?, MediaType::ImageLayerZstd),
        };
        let hex = hex::encode(blob.hasher.finalize());
        blob.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        publish(&self.partial, &blobs.join(&hex))?;
        let digest = oci_spec::image::Digest::from_str(&format!("sha256:{hex}"))?;
        Ok(Layer { descriptor: Descriptor::new(media_type, blob.size, digest), diff_id: diff_id.to_owned() })
    }
}

/// Gives a finished blob its name, readable for every user.
fn publish(partial: &Path, path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(partial, fs::Permissions::from_mode(0o644))?;
    fs::rename(partial, path).with_context(|| format!("rename a blob to {}", path.display()))
}

/// The compressed side: hashes and counts on the way to the disk.
struct Blob {
    file: BufWriter<File>,
    hasher: Sha256,
    size: u64,
}

impl Write for Blob {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn one_file(builder: &mut tar::Builder<&mut Fanout>) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        builder.append_data(&mut header, "hello", &b"world"[..])?;
        Ok(())
    }

    #[test]
    fn where_the_input_is_cut_does_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> =
            (0..1_500_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 27) as u8).collect();
        let cut = |size: usize| {
            write(folder.path(), &[Compression::Gzip, Compression::Zstd], |builder| {
                for piece in content.chunks(size) {
                    builder.get_mut().write_all(piece)?;
                }
                Ok(())
            })
            .unwrap()
            .into_iter()
            .map(|layer| layer.descriptor.digest().to_string())
            .collect::<Vec<_>>()
        };
        assert_eq!(cut(1000), cut(70_001));
    }

    #[test]
    fn every_compression_holds_the_same_bytes_and_a_second_run_the_same_digests() {
        let folder = tempfile::tempdir().unwrap();
        let both = [Compression::Gzip, Compression::Zstd];
        let layers = write(folder.path(), &both, one_file).unwrap();
        let again = write(folder.path(), &both, one_file).unwrap();
        let open = |layer: &Layer| File::open(folder.path().join(layer.descriptor.digest().digest())).unwrap();
        let (mut gzip, mut zstd) = (Vec::new(), Vec::new());
        flate2::read::GzDecoder::new(open(&layers[0])).read_to_end(&mut gzip).unwrap();
        zstd::Decoder::new(open(&layers[1])).unwrap().read_to_end(&mut zstd).unwrap();
        assert_eq!(gzip, zstd);
        assert_eq!(layers[0].diff_id, format!("sha256:{}", hex::encode(Sha256::digest(&gzip))));
        for (layer, again) in layers.iter().zip(&again) {
            assert_eq!(layer.descriptor, again.descriptor);
            let size = open(layer).metadata().unwrap().len();
            assert_eq!(layer.descriptor.size(), size);
            let blob = folder.path().join(layer.descriptor.digest().digest());
            assert_eq!(plain_bytes(&blob, layer.descriptor.media_type()).unwrap(), gzip.len() as u64);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
