//! Tars written byte by byte, in every dialect and with every fault that a test wants.

/// How headers say what the oldest form has no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// GNU: further entries for long names, binary numbers.
    Gnu,
    /// PAX: extended headers.
    Pax,
}

/// How a sparse file is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sparse {
    /// In the header, as GNU tar had it first.
    Gnu,
    /// In extended headers, one pair a record.
    Pax00,
    /// In extended headers, all pairs in one record.
    Pax01,
    /// In front of the data.
    Pax10,
}

/// Offset and length of each piece of a sparse file.
pub(super) type Pieces = Vec<(u64, u64)>;

/// One entry.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) path: String,
    /// The type flag.
    pub(super) kind: u8,
    pub(super) dialect: Dialect,
    pub(super) mode: u64,
    pub(super) owner: (u64, u64),
    pub(super) mtime: (i64, u32),
    pub(super) link: String,
    pub(super) content: Vec<u8>,
    pub(super) device: (u64, u64),
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
    /// For a sparse file: how it is told, its size, and its pieces, of which `content` is the data.
    pub(super) sparse: Option<(Sparse, u64, Pieces)>,
    /// What the header says instead of the content's length.
    pub(super) stated_size: Option<[u8; 12]>,
    /// Further PAX records.
    pub(super) records: Vec<(String, Vec<u8>)>,
}

impl Entry {
    pub(super) fn new(path: &str, kind: u8) -> Self {
        Self {
            path: path.to_owned(),
            kind,
            dialect: Dialect::Pax,
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            owner: (0, 0),
            mtime: (1_500_000_000, 0),
            link: String::new(),
            content: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
            sparse: None,
            stated_size: None,
            records: Vec::new(),
        }
    }

    pub(super) fn file(path: &str, content: &[u8]) -> Self {
        Self { content: content.to_vec(), ..Self::new(path, b'0') }
    }

    pub(super) fn link(path: &str, kind: u8, target: &str) -> Self {
        Self { link: target.to_owned(), ..Self::new(path, kind) }
    }

    /// Appends all blocks of the entry.
    pub(super) fn append(&self, tar: &mut Vec<u8>) {
        let mut data = self.content.clone();
        let mut header = self.header(data.len() as u64);
        match self.dialect {
            Dialect::Gnu => {
                for (flag, text, room) in [(b'L', &self.path, 100), (b'K', &self.link, 100)] {
                    if text.len() > room {
                        let text = [text.as_bytes(), b"\0"].concat();
                        push(tar, extension(flag, b"././@LongLink", text.len()), &text);
                    }
                }
                self.gnu_sparse(&mut header, tar, &data);
                if self.sparse.is_some() {
                    return;
                }
            }
            Dialect::Pax => {
                let records = self.pax_records(&mut data);
                if !records.is_empty() {
                    push(tar, extension(b'x', b"PaxHeaders/x", records.len()), &records);
                }
                if self.sparse.is_some() {
                    number(&mut header, 124..136, i64::try_from(data.len()).expect("small"));
                }
            }
        }
        push(tar, header, &data);
    }

    fn header(&self, size: u64) -> [u8; 512] {
        let mut header = [0; 512];
        put(&mut header, 0, &self.path.as_bytes()[..self.path.len().min(100)]);
        put(&mut header, 157, &self.link.as_bytes()[..self.link.len().min(100)]);
        header[156] = self.kind;
        number(&mut header, 100..108, self.mode.cast_signed());
        number(&mut header, 108..116, self.in_header(self.owner.0));
        number(&mut header, 116..124, self.in_header(self.owner.1));
        number(&mut header, 124..136, size.cast_signed());
        let seconds = if self.dialect == Dialect::Pax { self.mtime.0.max(0) } else { self.mtime.0 };
        number(&mut header, 136..148, seconds);
        number(&mut header, 329..337, self.device.0.cast_signed());
        number(&mut header, 337..345, self.device.1.cast_signed());
        put(&mut header, 257, if self.dialect == Dialect::Gnu { b"ustar  \0" } else { b"ustar\x0000" });
        if let Some(stated) = self.stated_size {
            put(&mut header, 124, &stated);
        }
        header
    }

    /// In the PAX dialect what does not fit is in a record.
    fn in_header(&self, id: u64) -> i64 {
        if self.dialect == Dialect::Pax { (id & 0o777_7777).cast_signed() } else { id.cast_signed() }
    }

    fn pax_records(&self, data: &mut Vec<u8>) -> Vec<u8> {
        let mut records = Vec::new();
        let mut add = |key: &str, value: &[u8]| records.extend(record(key, value));
        if self.path.len() > 100 {
            add("path", self.path.as_bytes());
        }
        if self.link.len() > 100 {
            add("linkpath", self.link.as_bytes());
        }
        for (key, id) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if id > 0o777_7777 {
                add(key, id.to_string().as_bytes());
            }
        }
        match self.mtime {
            (seconds @ 0.., 0) if seconds < 1 << 33 => {}
            (seconds, nanoseconds) => add("mtime", decimal(seconds, nanoseconds).as_bytes()),
        }
        for (name, value) in &self.xattrs {
            add(&format!("SCHILY.xattr.{name}"), value);
        }
        if let Some((how, size, pieces)) = &self.sparse {
            sparse_records(*how, *size, pieces, &self.path, data, &mut add);
        }
        for (key, value) in &self.records {
            add(key, value);
        }
        records
    }

    /// The old form: four pairs in the header, then 21 a block.
    fn gnu_sparse(&self, header: &mut [u8; 512], tar: &mut Vec<u8>, data: &[u8]) {
        let Some((_, size, pieces)) = &self.sparse else { return };
        header[156] = b'S';
        number(header, 483..495, size.cast_signed());
        let pair = |block: &mut [u8], at: usize, piece: &(u64, u64)| {
            octal(&mut block[at..at + 12], piece.0);
            octal(&mut block[at + 12..at + 24], piece.1);
        };
        let (first, rest) = pieces.split_at(pieces.len().min(4));
        for (index, piece) in first.iter().enumerate() {
            pair(header, 386 + index * 24, piece);
        }
        header[482] = u8::from(!rest.is_empty());
        push(tar, *header, &[]);
        let blocks = rest.chunks(21);
        let last = blocks.len();
        for (index, some) in blocks.enumerate() {
            let mut block = [0; 512];
            for (index, piece) in some.iter().enumerate() {
                pair(&mut block, index * 24, piece);
            }
            block[504] = u8::from(index + 1 < last);
            tar.extend_from_slice(&block);
        }
        pad(tar, data);
    }
}

fn sparse_records(
    how: Sparse,
    size: u64,
    pieces: &[(u64, u64)],
    path: &str,
    data: &mut Vec<u8>,
    add: &mut impl FnMut(&str, &[u8]),
) {
    let mut text = |key: &str, value: String| add(&format!("GNU.sparse.{key}"), value.as_bytes());
    match how {
        Sparse::Gnu | Sparse::Pax00 => {
            text("size", size.to_string());
            text("numblocks", pieces.len().to_string());
            for (offset, length) in pieces {
                text("offset", offset.to_string());
                text("numbytes", length.to_string());
            }
        }
        Sparse::Pax01 => {
            text("size", size.to_string());
            text("numblocks", pieces.len().to_string());
            let numbers: Vec<String> = pieces.iter().map(|(offset, length)| format!("{offset},{length}")).collect();
            text("map", numbers.join(","));
            text("name", path.to_owned());
        }
        Sparse::Pax10 => {
            text("major", 1.to_string());
            text("minor", 0.to_string());
            text("name", path.to_owned());
            text("realsize", size.to_string());
            let mut map = format!("{}\n", pieces.len());
            pieces.iter().for_each(|(offset, length)| map.push_str(&format!("{offset}\n{length}\n")));
            let mut map = map.into_bytes();
            map.resize(map.len().next_multiple_of(512), 0);
            data.splice(0..0, map);
        }
    }
}

/// A whole tar of these entries.
pub(super) fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<u8> {
    let mut tar = Vec::new();
    entries.into_iter().for_each(|entry| entry.append(&mut tar));
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// Decimal seconds; the nanoseconds count up also before 1970.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = body.len() + 1;
    while length != body.len() + length.to_string().len() {
        length = body.len() + length.to_string().len();
    }
    [length.to_string().into_bytes(), body].concat()
}

fn extension(flag: u8, name: &[u8], size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    put(&mut header, 0, name);
    header[156] = flag;
    number(&mut header, 100..108, 0o644);
    number(&mut header, 124..136, i64::try_from(size).expect("small"));
    put(&mut header, 257, if flag == b'x' || flag == b'g' { b"ustar\x0000" } else { b"ustar  \0" });
    header
}

/// An extended header for all entries that follow.
pub(super) fn global(key: &str, value: &[u8]) -> Vec<u8> {
    let (mut tar, record) = (Vec::new(), record(key, value));
    push(&mut tar, extension(b'g', b"PaxHeaders/g", record.len()), &record);
    tar
}

fn push(tar: &mut Vec<u8>, mut header: [u8; 512], data: &[u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&header);
    pad(tar, data);
}

fn pad(tar: &mut Vec<u8>, data: &[u8]) {
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn put(header: &mut [u8], at: usize, bytes: &[u8]) {
    header[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Octal digits where they fit, else all bits with the first one set.
fn number(header: &mut [u8; 512], field: std::ops::Range<usize>, value: i64) {
    let field = &mut header[field];
    let digits = field.len() - 1;
    match u64::try_from(value) {
        Ok(value) if value < 1 << (3 * digits) => octal(field, value),
        _ => {
            let fill = if value < 0 { 0xff } else { 0 };
            let bytes = value.to_be_bytes();
            let start = field.len().saturating_sub(8);
            field[..start].fill(fill);
            let taken = field.len() - start;
            field[start..].copy_from_slice(&bytes[8 - taken..]);
            field[0] |= 0x80;
        }
    }
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
}
