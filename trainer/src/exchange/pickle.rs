//! Reads a pickle as data: a stack machine that builds plain values and never calls anything.
//!
//! Python's unpickler imports and calls whatever the file names. Here `GLOBAL`, `REDUCE`, `NEWOBJ` and `BUILD` only
//! record what was asked for ([`Value::Global`], [`Value::Call`]), so a file can describe a tensor and cannot do
//! anything. The one call with a meaning is `collections.OrderedDict()`, which is an empty dict.
//! (`candle_core::pickle` was turned down: it clones values through the memo, so a small file can ask for memory without
//! bound, loses what is added to a dict after it was memoised, and panics on short argument lists.)
//!
//! Values live in an arena and refer to each other by index, so sharing and cycles cost nothing and dropping never
//! recurses. Each opcode makes at most one value out of what is on the stack, so memory is a small multiple of the
//! pickle's length.

use std::collections::HashMap;

/// Place of a [`Value`] in its [`Pickle`].
pub(crate) type Id = usize;

/// One value of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes, text that is not UTF-8, and integers beyond 64 bits: carried along, of no use here.
    Bytes(Vec<u8>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list, a set or a frozen set.
    List(Vec<Id>),
    /// A dict or an ordered dict, in the order of insertion.
    Dict(Vec<(Id, Id)>),
    /// A function or class that the file names; never looked up.
    Global {
        /// For example `torch._utils`.
        module: String,
        /// For example `_rebuild_tensor_v2`.
        name: String,
    },
    /// `callable(*args)` or `cls.__new__(cls, *args)`, not made; `state` is what `BUILD` would have set on it.
    Call {
        /// What would have been called.
        callable: Id,
        /// The tuple of arguments.
        args: Id,
        /// The state set afterwards.
        state: Option<Id>,
    },
    /// A reference to something outside of the pickle: in PyTorch's files, a storage.
    Persistent(Id),
}

impl Value {
    /// What it is in a word, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Text(_) => "a text",
            Value::Bytes(_) => "bytes",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dict",
            Value::Global { .. } => "a name of a class or function",
            Value::Call { .. } => "an object of a class",
            Value::Persistent(_) => "a storage",
        }
    }
}

/// A pickle that was read to its end.
#[derive(Debug)]
pub(crate) struct Pickle {
    values: Vec<Value>,
    root: Id,
    /// Bytes read, the `STOP` opcode included.
    pub(crate) n_bytes: usize,
}

impl Pickle {
    /// Reads one pickle (protocol 2 to 5) from the beginning of `bytes`; what follows its `STOP` is left alone.
    ///
    /// # Errors
    /// A sentence naming the opcode and its place, for anything but a complete pickle.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Pickle, String> {
        let mut machine = Machine {
            input: Input { bytes, at: 0 },
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let at = machine.input.at;
            let opcode = machine
                .input
                .byte()
                .map_err(|problem| format!("pickle: {problem}"))?;
            match machine.step(opcode) {
                Ok(None) => {}
                Ok(Some(root)) => {
                    return Ok(Pickle {
                        values: machine.values,
                        root,
                        n_bytes: machine.input.at,
                    });
                }
                Err(problem) => {
                    return Err(format!(
                        "pickle: opcode 0x{opcode:02x} at byte {at}: {problem}"
                    ));
                }
            }
        }
    }

    /// The outermost value.
    pub(crate) fn root(&self) -> Id {
        self.root
    }

    /// The value at `id`.
    pub(crate) fn get(&self, id: Id) -> &Value {
        // Ids are only made by the machine, which never removes a value.
        &self.values[id]
    }

    /// All references to things outside of the pickle.
    pub(crate) fn persistent(&self) -> impl Iterator<Item = Id> {
        self.values.iter().filter_map(|value| match value {
            Value::Persistent(id) => Some(*id),
            _ => None,
        })
    }

    /// The text at `id`, if it is one.
    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The entries of the dict at `id`, if it is one. A key met twice keeps its first place and takes its last value,
    /// as in Python.
    pub(crate) fn entries(&self, id: Id) -> Option<Vec<(Id, Id)>> {
        let Value::Dict(raw) = self.get(id) else {
            return None;
        };
        let mut entries: Vec<(Id, Id)> = Vec::with_capacity(raw.len());
        let mut place_of_text: HashMap<&str, usize> = HashMap::new();
        for &(key, value) in raw {
            if let Some(text) = self.text(key) {
                if let Some(&place) = place_of_text.get(text) {
                    entries[place].1 = value;
                    continue;
                }
                place_of_text.insert(text, entries.len());
            }
            entries.push((key, value));
        }
        Some(entries)
    }

    /// The value of the text key `key` in the dict at `id`.
    pub(crate) fn entry(&self, id: Id, key: &str) -> Option<Id> {
        let Value::Dict(raw) = self.get(id) else {
            return None;
        };
        raw.iter()
            .rev()
            .find(|(k, _)| self.text(*k) == Some(key))
            .map(|&(_, value)| value)
    }

    /// `module.name` of the global at `id`, as one text.
    pub(crate) fn global(&self, id: Id) -> Option<String> {
        match self.get(id) {
            Value::Global { module, name } => Some(format!("{module}.{name}")),
            _ => None,
        }
    }

    /// The elements of the tuple at `id`.
    pub(crate) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The integer at `id`; numbers below zero and everything else are none.
    pub(crate) fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self
            .at
            .checked_add(n)
            .filter(|&end| end <= self.bytes.len());
        let end =
            end.ok_or_else(|| format!("{n} bytes wanted, {} left", self.bytes.len() - self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N)?;
        <[u8; N]>::try_from(taken).map_err(|_| format!("{N} bytes wanted"))
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<usize, String> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|e| e.to_string())
    }

    fn u64(&mut self) -> Result<usize, String> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|e| e.to_string())
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let n = rest
            .iter()
            .position(|&b| b == b'\n')
            .ok_or("a line without an end")?;
        let line = self.take(n + 1)?;
        Ok(String::from_utf8_lossy(&line[..n])
            .trim_end_matches('\r')
            .to_owned())
    }
}

struct Machine<'a> {
    input: Input<'a>,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack where a `MARK` was met.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

impl Machine<'_> {
    /// Runs one opcode; the root at `STOP`.
    fn step(&mut self, opcode: u8) -> Result<Option<Id>, String> {
        match opcode {
            // PROTO, FRAME: nothing depends on them
            0x80 => drop(self.input.byte()?),
            0x95 => drop(self.input.u64()?),
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => {
                let number = self.input.byte()?;
                self.push(Value::Int(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.input.array()?);
                self.push(Value::Int(number.into()));
            }
            b'J' => {
                let number = i32::from_le_bytes(self.input.array()?);
                self.push(Value::Int(number.into()));
            }
            0x8a => {
                let n = self.input.byte()?.into();
                self.long(n)?;
            }
            0x8b => {
                let n = self.input.u32()?;
                self.long(n)?;
            }
            b'G' => {
                let number = f64::from_be_bytes(self.input.array()?);
                self.push(Value::Float(number));
            }
            // the lengths before texts and bytes: of one, four or eight bytes
            0x8c | b'U' | b'C' => {
                let n = self.input.byte()?.into();
                self.blob(n, opcode != b'C')?;
            }
            b'X' | b'T' | b'B' => {
                let n = self.input.u32()?;
                self.blob(n, opcode != b'B')?;
            }
            0x8d | 0x8e | 0x96 => {
                let n = self.input.u64()?;
                self.blob(n, opcode == 0x8d)?;
            }
            b')' => self.push(Value::Tuple(Vec::new())),
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let from = self.above_mark(n)?;
                let items = self.stack.split_off(from);
                self.push(Value::Tuple(items));
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items));
            }
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Value::List(items));
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(pairs(&items)?));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend_list(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(pairs(&items)?)?;
            }
            b'q' => {
                let key = self.input.byte()?.into();
                self.remember(key)?;
            }
            b'r' => {
                let key = self.input.u32()?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len())?,
            b'h' => {
                let key = self.input.byte()?.into();
                self.recall(key)?;
            }
            b'j' => {
                let key = self.input.u32()?;
                self.recall(key)?;
            }
            b'c' => {
                let module = self.input.line()?;
                let name = self.input.line()?;
                self.push(Value::Global { module, name });
            }
            0x93 => {
                let name = self.pop_text()?;
                let module = self.pop_text()?;
                self.push(Value::Global { module, name });
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            // REDUCE and NEWOBJ; NEWOBJ_EX has keyword arguments on top, which no tensor needs
            b'R' | 0x81 => self.call()?,
            0x92 => {
                self.pop()?;
                self.call()?;
            }
            b'b' => self.build()?,
            _ => return Err("not an opcode that PyTorch's files use".to_owned()),
        }
        Ok(None)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    /// Height of the stack `n` values down, which must not reach below the last mark.
    fn above_mark(&self, n: usize) -> Result<usize, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .len()
            .checked_sub(n)
            .filter(|&height| height >= floor)
            .ok_or_else(|| "the stack is empty".to_owned())
    }

    fn top(&self) -> Result<Id, String> {
        Ok(self.stack[self.above_mark(1)?])
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_text(&mut self) -> Result<String, String> {
        let id = self.pop()?;
        match &self.values[id] {
            Value::Text(text) => Ok(text.clone()),
            other => Err(format!("a text was expected, found {}", other.kind())),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let height = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(height))
    }

    fn long(&mut self, n: usize) -> Result<(), String> {
        let bytes = self.input.take(n)?;
        let value = if n <= 8 {
            let negative = bytes.last().is_some_and(|&b| b >= 0x80);
            let mut wide = if negative { [0xff; 8] } else { [0; 8] };
            wide[..n].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        } else {
            Value::Bytes(bytes.to_vec())
        };
        self.push(value);
        Ok(())
    }

    fn blob(&mut self, n: usize, is_text: bool) -> Result<(), String> {
        let bytes = self.input.take(n)?;
        let value = match std::str::from_utf8(bytes) {
            Ok(text) if is_text => Value::Text(text.to_owned()),
            _ => Value::Bytes(bytes.to_vec()),
        };
        self.push(value);
        Ok(())
    }

    fn extend_list(&mut self, items: Vec<Id>) -> Result<(), String> {
        let id = self.top()?;
        match &mut self.values[id] {
            Value::List(list) => list.extend(items),
            // a list-like object of a class: its elements are of no use here
            Value::Call { .. } => {}
            other => return Err(format!("a list was expected, found {}", other.kind())),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: Vec<(Id, Id)>) -> Result<(), String> {
        let id = self.top()?;
        match &mut self.values[id] {
            Value::Dict(dict) => dict.extend(items),
            Value::Call { .. } => {}
            other => return Err(format!("a dict was expected, found {}", other.kind())),
        }
        Ok(())
    }

    fn remember(&mut self, key: usize) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: usize) -> Result<(), String> {
        let id = self
            .memo
            .get(&key)
            .ok_or_else(|| format!("nothing is remembered as {key}"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let args = self.pop()?;
        let callable = self.pop()?;
        let is_empty_dict = matches!(&self.values[callable],
            Value::Global { module, name } if module == "collections" && (name == "OrderedDict" || name == "defaultdict"));
        self.push(if is_empty_dict {
            Value::Dict(Vec::new())
        } else {
            Value::Call {
                callable,
                args,
                state: None,
            }
        });
        Ok(())
    }

    fn build(&mut self) -> Result<(), String> {
        let new_state = self.pop()?;
        let id = self.top()?;
        // The state of an ordered dict is its attributes (`_metadata`), not its entries, so it is left out.
        if let Value::Call { state, .. } = &mut self.values[id] {
            *state = Some(new_state);
        }
        Ok(())
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    if !items.len().is_multiple_of(2) {
        return Err(format!(
            "{} keys and values, expected an even number",
            items.len()
        ));
    }
    Ok(items
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_plain_values() {
        // {'a': [1, -2, 2.5, None, True], 'b': (300, 2**40, 'x')} in protocol 2
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffG@\x04\x00\x00\x00\x00\x00\x00N\x88eX\x01\x00\x00\x00bM\x2c\x01\x8a\x06\x00\x00\x00\x00\x00\x01X\x01\x00\x00\x00x\x87u.tail";
        let pickle = Pickle::parse(bytes).unwrap();
        assert_eq!(pickle.n_bytes, bytes.len() - 4);
        let list = pickle.entry(pickle.root(), "a").unwrap();
        let Value::List(items) = pickle.get(list) else {
            panic!("{:?}", pickle.get(list))
        };
        let items: Vec<&Value> = items.iter().map(|&id| pickle.get(id)).collect();
        assert_eq!(
            items,
            [
                &Value::Int(1),
                &Value::Int(-2),
                &Value::Float(2.5),
                &Value::None,
                &Value::Bool(true)
            ]
        );
        let tuple = pickle
            .tuple(pickle.entry(pickle.root(), "b").unwrap())
            .unwrap();
        assert_eq!(pickle.size(tuple[0]), Some(300));
        assert_eq!(pickle.size(tuple[1]), Some(1 << 40));
        assert_eq!(pickle.text(tuple[2]), Some("x"));
    }

    #[test]
    fn what_is_added_after_the_memo_is_seen_through_it() {
        // d = {}; root = (d, d) where the entry arrives between the two
        let bytes = b"\x80\x02}q\x00X\x01\x00\x00\x00kK\x07sh\x00\x86.";
        let pickle = Pickle::parse(bytes).unwrap();
        let both = pickle.tuple(pickle.root()).unwrap();
        assert_eq!(both[0], both[1]);
        assert_eq!(
            pickle.entry(both[1], "k").and_then(|id| pickle.size(id)),
            Some(7)
        );
    }

    #[test]
    fn calls_are_recorded_and_not_made() {
        let pickle = Pickle::parse(b"cos\nsystem\nX\x04\x00\x00\x00true\x85R}b.").unwrap();
        let Value::Call {
            callable, state, ..
        } = pickle.get(pickle.root())
        else {
            panic!()
        };
        assert_eq!(pickle.global(*callable).as_deref(), Some("os.system"));
        assert!(state.is_some());
    }

    #[test]
    fn a_key_met_twice_takes_its_last_value() {
        let pickle = Pickle::parse(
            b"}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00bK\x02X\x01\x00\x00\x00aK\x03u.",
        )
        .unwrap();
        let entries = pickle.entries(pickle.root()).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(pickle.size(entries[0].1), Some(3));
        assert_eq!(
            pickle
                .entry(pickle.root(), "a")
                .and_then(|id| pickle.size(id)),
            Some(3)
        );
    }

    #[test]
    fn broken_pickles_are_errors() {
        let broken: [(&[u8], &str); 10] = [
            (b"", "1 bytes wanted"),
            (b".", "the stack is empty"),
            (b"(.", "the stack is empty"),
            (b"K\x01(\x85.", "the stack is empty"),
            (b"X\xff\xff\xff\xffab.", "4294967295 bytes wanted"),
            (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.", "bytes wanted"),
            (b"h\x05.", "nothing is remembered as 5"),
            (b"K\x01K\x02K\x03s.", "a dict was expected"),
            (b"}(K\x01u.", "even number"),
            (b"\xfe.", "not an opcode"),
        ];
        for (bytes, expected) in broken {
            let problem = Pickle::parse(bytes).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn nesting_and_cycles_cost_no_stack() {
        // a list in a list, a million deep, and a list that holds itself
        let mut bytes = vec![b']'; 1_000_000];
        bytes.extend(vec![b'a'; 999_999]);
        bytes.push(b'.');
        drop(Pickle::parse(&bytes).unwrap());
        drop(Pickle::parse(b"]q\x00h\x00a.").unwrap());
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Pickle::parse(&bytes));
        }

        #[test]
        fn opcodes_in_any_order_do_not_make_it_panic(
            picks in proptest::collection::vec(proptest::sample::select(b"(012N\x88K\x01)]}\x85\x86\x87tldaesuq\x00h\x00\x94\x93QR\x81\x92b.".to_vec()), 0..200),
        ) {
            drop(Pickle::parse(&picks));
        }
    }
}
