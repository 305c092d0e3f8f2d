//! What `torch.save` writes of a state dict, read without executing anything: of pickle's opcodes those that build plain values, of its globals
//! those that name a tensor or an ordered dict. Anything else is refused by name.
//!
//! Values lie in one list and refer to each other by index, so no file can make the reader recurse, and each byte of the pickle makes a bounded
//! number of them.

use std::collections::HashMap;

use super::arrays::Element;

/// A state dict's pickle has some 150 bytes per tensor; a longer one than this is no dictionary's. What it is read into takes some megabytes at most.
pub(super) const MAX_LENGTH: u64 = 1 << 16;

/// More axes than any array of a dictionary has.
const MAX_AXES: usize = 4;

/// A tensor as the pickle describes it: a view of a storage that is an entry of its own.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    /// The entry's name below `data/`.
    pub(super) storage: String,
    pub(super) element: Element,
    /// Elements of the storage.
    pub(super) stored: usize,
    /// Elements of the storage before the first.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// In elements, one for each axis.
    pub(super) stride: Vec<usize>,
}

/// Index of a value.
type Id = usize;

#[derive(Debug)]
enum Value<'a> {
    /// `None`, and numbers with a fraction, of which nothing asks for the value.
    Other,
    Bool,
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List,
    Dict {
        entries: Vec<(Id, Id)>,
        ordered: bool,
    },
    Global(Global),
    Storage {
        key: &'a str,
        element: Element,
        stored: usize,
    },
    Tensor(Box<Tensor>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", "DoubleStorage") => Some(Self::Storage(Element::F64)),
            ("torch", "FloatStorage") => Some(Self::Storage(Element::F32)),
            ("torch", "HalfStorage") => Some(Self::Storage(Element::F16)),
            ("torch", "BFloat16Storage") => Some(Self::Storage(Element::Bf16)),
            ("torch", "LongStorage") => Some(Self::Storage(Element::I64)),
            ("torch", "IntStorage") => Some(Self::Storage(Element::I32)),
            ("torch", "ShortStorage") => Some(Self::Storage(Element::I16)),
            ("torch", "CharStorage") => Some(Self::Storage(Element::I8)),
            ("torch", "ByteStorage") => Some(Self::Storage(Element::U8)),
            ("torch", "BoolStorage") => Some(Self::Storage(Element::Bool)),
            _ => None,
        }
    }
}

/// The tensors of a pickled state dict by name, or what is wrong with it in half a sentence.
pub(super) fn state_dict(bytes: &[u8]) -> Result<HashMap<String, Tensor>, String> {
    let mut machine = Machine {
        input: Input { bytes, at: 0 },
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    let Value::Dict { entries, .. } = &machine.values[root] else {
        return Err("the pickled value is not a dict of tensors".into());
    };
    let mut tensors = HashMap::new();
    for (key, value) in entries {
        // Numbers may stand among the tensors.
        if let (Value::Text(key), Value::Tensor(tensor)) = (&machine.values[*key], &machine.values[*value]) {
            tensors.insert((*key).to_owned(), Tensor::clone(tensor));
        }
    }
    if tensors.is_empty() {
        return Err("no tensor in the pickled dict".into());
    }
    Ok(tensors)
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end =
            end.ok_or_else(|| format!("the pickle ends at byte {}, in the middle of a value", self.bytes.len()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of `length` <= 8 bytes.
    fn unsigned(&mut self, length: usize) -> Result<u64, String> {
        Ok(self.take(length)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A string after its length in `width` bytes.
    fn text(&mut self, width: usize) -> Result<&'a str, String> {
        let length = usize::try_from(self.unsigned(width)?).map_err(|_| "a string longer than memory")?;
        let at = self.at;
        std::str::from_utf8(self.take(length)?).map_err(|_| format!("the string at byte {at} is not UTF-8"))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or("a name in the pickle has no end")?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| "a name in the pickle is not UTF-8".into())
    }
}

struct Machine<'a> {
    input: Input<'a>,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack where a group of values began.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// Runs up to the end mark and returns the value left.
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let at = self.input.at;
            let opcode = self.input.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)
                .map_err(|problem| format!("{problem} (opcode {opcode:#04x} at byte {at} of the pickle)"))?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            // Which protocol, and frames: of no consequence.
            0x80 => {
                self.input.take(1)?;
            }
            0x95 => {
                self.input.take(8)?;
            }
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::Other),
            0x88 | 0x89 => self.push(Value::Bool),
            b'G' => {
                self.input.take(8)?;
                self.push(Value::Other);
            }
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            b'J' => {
                let number = self.input.unsigned(4)? as u32;
                self.push(Value::Int(i64::from(number.cast_signed())));
            }
            0x8a => self.long()?,
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Tuple(items));
            }
            b']' => self.push(Value::List),
            b'a' => {
                self.pop()?;
                self.list()?;
            }
            b'e' => {
                self.since_mark()?;
                self.list()?;
            }
            b'}' => self.push(Value::Dict { entries: Vec::new(), ordered: false }),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(&[key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.extend_dict(&items)?;
            }
            b'q' => self.remember(1)?,
            b'r' => self.remember(4)?,
            0x94 => {
                let place = self.memo.len() as u64;
                self.memo.insert(place, self.top()?);
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.values[module], &self.values[name]) {
                    (Value::Text(module), Value::Text(name)) => self.global(module, name)?,
                    _ => return Err("a global without a name".into()),
                }
            }
            b'Q' => self.persistent()?,
            b'R' => self.call()?,
            b'b' => self.build()?,
            _ => return Err("this has no place in a state dict".into()),
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn top(&self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.last().copied().filter(|_| self.stack.len() > floor).ok_or_else(|| "a value is missing".into())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, String> {
        let start = self.marks.pop().ok_or("a group of values has no beginning")?;
        Ok(self.stack.split_off(start))
    }

    fn integer(&mut self, length: usize) -> Result<(), String> {
        let number = self.input.unsigned(length)?;
        self.push(Value::Int(number as i64));
        Ok(())
    }

    /// A signed number with its length before it.
    fn long(&mut self) -> Result<(), String> {
        let length = usize::from(self.input.byte()?);
        if length > 8 {
            return Err("a number of over 64 bits".into());
        }
        let unused = 64 - 8 * length as u32;
        let number = self.input.unsigned(length)?.checked_shl(unused).unwrap_or(0).cast_signed();
        self.push(Value::Int(number.checked_shr(unused).unwrap_or(0)));
        Ok(())
    }

    fn text(&mut self, width: usize) -> Result<(), String> {
        let text = self.input.text(width)?;
        self.push(Value::Text(text));
        Ok(())
    }

    fn tuple(&mut self, length: usize) -> Result<(), String> {
        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    /// Nothing asks for the items of a list.
    fn list(&self) -> Result<(), String> {
        match self.values[self.top()?] {
            Value::List => Ok(()),
            _ => Err("items for what is not a list".into()),
        }
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), String> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks();
        match &mut self.values[dict] {
            Value::Dict { entries, .. } if rest.is_empty() => {
                entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            Value::Dict { .. } => Err("a key without a value".into()),
            _ => Err("keys for what is not a dict".into()),
        }
    }

    fn remember(&mut self, length: usize) -> Result<(), String> {
        let place = self.input.unsigned(length)?;
        self.memo.insert(place, self.top()?);
        Ok(())
    }

    fn recall(&mut self, length: usize) -> Result<(), String> {
        let place = self.input.unsigned(length)?;
        let id = *self.memo.get(&place).ok_or("a reference to nothing")?;
        self.stack.push(id);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let global = Global::named(module, name).ok_or_else(|| {
            let (module, name) = (shortened(module), shortened(name));
            format!("{module}.{name} is neither a tensor nor a dict, and nothing else is read: save the state_dict()")
        })?;
        self.push(Value::Global(global));
        Ok(())
    }

    /// `("storage", type, key, device, elements)`.
    fn persistent(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let problem = "a reference outside the pickle that is not to a storage";
        let Value::Tuple(items) = &self.values[id] else { return Err(problem.into()) };
        let [kind, class, key, _, stored] = items[..] else { return Err(problem.into()) };
        let items = [kind, class, key, stored].map(|id| &self.values[id]);
        let [Value::Text("storage"), Value::Global(Global::Storage(element)), Value::Text(key), Value::Int(stored)] =
            items
        else {
            return Err(problem.into());
        };
        let stored = usize::try_from(*stored).map_err(|_| format!("a storage of {stored} elements"))?;
        let storage = Value::Storage { key, element: *element, stored };
        self.push(storage);
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = self.values[function] else { return Err("a call of what is no function".into()) };
        let Value::Tuple(arguments) = &self.values[arguments] else { return Err("a call without arguments".into()) };
        match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.push(Value::Dict { entries: Vec::new(), ordered: true }),
            (Global::RebuildParameter, [data, ..]) if matches!(self.values[*data], Value::Tensor(_)) => {
                let data = *data;
                self.stack.push(data);
            }
            // Then come requires_grad and hooks.
            (Global::RebuildTensor, [storage, offset, shape, stride, ..]) => {
                let tensor = self.tensor(*storage, *offset, *shape, *stride)?;
                self.push(Value::Tensor(Box::new(tensor)));
            }
            (function, arguments) => return Err(format!("{function:?} of {} arguments", arguments.len())),
        }
        Ok(())
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, stride: Id) -> Result<Tensor, String> {
        let Value::Storage { key, element, stored } = self.values[storage] else {
            return Err("a tensor without a storage".into());
        };
        let number = |id: Id| match self.values[id] {
            Value::Int(number) => usize::try_from(number).map_err(|_| format!("{number} in a tensor's shape")),
            _ => Err("what is not a number in a tensor's shape".to_owned()),
        };
        let numbers = |id: Id| match &self.values[id] {
            Value::Tuple(items) if items.len() <= MAX_AXES => items.iter().map(|item| number(*item)).collect(),
            Value::Tuple(items) => Err(format!("a tensor of {} axes, expected at most {MAX_AXES}", items.len())),
            _ => Err("a tensor without a shape".to_owned()),
        };
        Ok(Tensor {
            storage: key.to_owned(),
            element,
            stored,
            offset: number(offset)?,
            shape: numbers(shape)?,
            stride: numbers(stride)?,
        })
    }

    /// Attributes of an ordered dict (a state dict's `_metadata`), which are not read.
    fn build(&mut self) -> Result<(), String> {
        self.pop()?;
        match self.values[self.top()?] {
            Value::Dict { ordered: true, .. } => Ok(()),
            _ => Err("attributes of what is not an ordered dict".into()),
        }
    }
}

/// What a message quotes of a name that may be as long as the file and break lines.
fn shortened(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}
