//! The parameters of a model by name, in the order in which the model registered them.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};

use super::init::Init;
use crate::distributed::Ranks;
use crate::error::{Error, Result};

/// One parameter or fixed table.
#[derive(Debug, Clone)]
pub struct Param {
    /// The reference checkpoint's name, such as `blocks.0.attn.qkv.weight`.
    pub name: String,
    /// Its storage. The model's layers hold tensors that share it, so [`Var::set`] is seen by the model at once.
    pub var: Var,
    /// False for fixed tables (`pos_embed`, `decoder_pos_embed`) and for followers, which are saved but never trained.
    pub trainable: bool,
    /// The parameter that this one follows, for those made by [`Params::following`].
    follows: Option<Var>,
}

/// Creates and keeps the parameters of one model.
///
/// Order is the order of registration, which is the reference's `named_parameters()` order, so that everything derived
/// from it (optimizer state, flat gradients, reports) is the same in every run. Initial values depend on the seed and
/// the parameter's name alone, never on the order.
#[derive(Debug)]
pub struct Params {
    seed: u64,
    dtype: DType,
    device: Device,
    ranks: Ranks,
    entries: Vec<Param>,
    by_name: HashMap<String, usize>,
    /// Inside [`Params::following`]: what its names begin with.
    prefix: Option<String>,
}

/// What [`Params::load_partial`] did not find.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Parameters that kept their values because the source does not have them.
    pub missing: Vec<String>,
    /// Tensors of the source that no parameter asked for, sorted.
    pub unexpected: Vec<String>,
}

impl Params {
    /// An empty set whose parameters will be made on `device` with `dtype` (f32 for training, f64 for gradient checks).
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Params {
        Params {
            seed,
            dtype,
            device: device.clone(),
            ranks: Ranks::single(),
            entries: Vec::new(),
            by_name: HashMap::new(),
            prefix: None,
        }
    }

    /// The same for a model whose batches `ranks` share: layers that look across the batch look across the ranks.
    pub fn across(self, ranks: Ranks) -> Params {
        Params { ranks, ..self }
    }

    /// The processes that share each batch.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// Where the parameters are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Element type of all parameters.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Makes a trainable parameter and returns the tensor that the layer computes with.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the name is taken.
    pub fn trainable(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        if let Some(prefix) = self.prefix.clone() {
            return self.follower(&prefix, name, shape);
        }
        let values = init.values(self.seed, name, shape);
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?
            .to_dtype(self.dtype)?
            .to_device(&self.device)?;
        let var = Var::from_tensor(&tensor)?;
        let shared = var.as_tensor().clone();
        self.insert(name, var, true, None)?;
        Ok(shared)
    }

    /// Registers a fixed table (any float type; converted) and returns a tensor that shares its storage and takes no
    /// gradient.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the name is taken.
    pub fn frozen(&mut self, name: &str, table: &Tensor) -> Result<Tensor> {
        if self.prefix.is_some() {
            return Ok(self.original(name)?.as_detached_tensor());
        }
        let table = table.to_dtype(self.dtype)?.to_device(&self.device)?;
        let var = Var::from_tensor(&table)?;
        let shared = var.as_detached_tensor();
        self.insert(name, var, false, None)?;
        Ok(shared)
    }

    /// Builds layers that are here already once more, with parameters that are not trained but follow the first ones':
    /// `{prefix}.{name}` for each `name`, with its present value. Fixed tables are shared.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `build` asks for a parameter that is not here yet; whatever `build` reports.
    pub fn following<T>(
        &mut self,
        prefix: &str,
        build: impl FnOnce(&mut Params) -> Result<T>,
    ) -> Result<T> {
        self.prefix = Some(prefix.to_owned());
        let built = build(self);
        self.prefix = None;
        built
    }

    /// Moves each follower towards what it follows: `keep * itself + (1 - keep) * the other`, in place. With 0 they
    /// become equal.
    pub fn follow(&self, keep: f64) -> Result<()> {
        for param in &self.entries {
            if let Some(original) = &param.follows {
                let kept = param.var.as_detached_tensor().affine(keep, 0.0)?;
                let taken = original.as_detached_tensor().affine(1.0 - keep, 0.0)?;
                param.var.set(&(kept + taken)?)?;
            }
        }
        Ok(())
    }

    fn follower(&mut self, prefix: &str, name: &str, shape: &[usize]) -> Result<Tensor> {
        let original = self.original(name)?;
        if original.dims() != shape {
            return Err(Error::Shape {
                what: format!("{prefix}.{name}"),
                got: shape.to_vec(),
                expected: format!("{:?}", original.dims()),
            });
        }
        let var = Var::from_tensor(&original.as_detached_tensor().copy()?)?;
        let shared = var.as_detached_tensor();
        self.insert(&format!("{prefix}.{name}"), var, false, Some(original))?;
        Ok(shared)
    }

    fn original(&self, name: &str) -> Result<Var> {
        let param = self.get(name).ok_or_else(|| Error::Parameter {
            name: name.to_owned(),
            problem: "is to be followed but not there".to_owned(),
        })?;
        Ok(param.var.clone())
    }

    fn insert(
        &mut self,
        name: &str,
        var: Var,
        trainable: bool,
        follows: Option<Var>,
    ) -> Result<()> {
        if self.by_name.contains_key(name) {
            return Err(Error::Parameter {
                name: name.to_owned(),
                problem: "registered twice".to_owned(),
            });
        }
        self.by_name.insert(name.to_owned(), self.entries.len());
        self.entries.push(Param {
            name: name.to_owned(),
            var,
            trainable,
            follows,
        });
        Ok(())
    }

    /// All parameters and tables, in order of registration.
    pub fn iter(&self) -> std::slice::Iter<'_, Param> {
        self.entries.iter()
    }

    /// The trainable ones, in order of registration.
    pub fn iter_trainable(&self) -> impl Iterator<Item = &Param> {
        self.entries.iter().filter(|param| param.trainable)
    }

    /// The parameter of that name.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.by_name.get(name).map(|&i| &self.entries[i])
    }

    /// Numbers of trainable and of frozen values.
    pub fn counts(&self) -> (usize, usize) {
        self.entries
            .iter()
            .fold((0, 0), |(trainable, frozen), param| {
                let n = param.var.elem_count();
                if param.trainable {
                    (trainable + n, frozen)
                } else {
                    (trainable, frozen + n)
                }
            })
    }

    /// Name of the first parameter or table that holds a NaN or an infinity.
    ///
    /// # Errors
    /// If they cannot be read back from the device.
    pub fn first_not_finite(&self) -> Result<Option<&str>> {
        // 0 times a number is 0, unless the number is none; one read for all, as each would wait for the device.
        let nothing = |param: &Param| {
            let values = param.var.as_detached_tensor().to_dtype(DType::F32)?;
            values.affine(0.0, 0.0)?.sum_all()
        };
        let sums = self.entries.iter().map(nothing);
        let sums = Tensor::stack(&sums.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let sums = sums.to_vec1::<f32>()?;
        let bad = sums.iter().position(|sum| sum.is_nan());
        Ok(bad.map(|at| self.entries[at].name.as_str()))
    }

    /// CRC-32C of the values of all parameters and tables, as f32, in order.
    ///
    /// # Errors
    /// If they cannot be read back from the device.
    pub fn checksum(&self) -> Result<u32> {
        let mut sum = 0;
        for param in &self.entries {
            let values = param.var.as_detached_tensor().to_dtype(DType::F32)?;
            let values = values.flatten_all()?.to_vec1::<f32>()?;
            let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
            sum = crc32c::crc32c_append(sum, &bytes);
        }
        Ok(sum)
    }

    /// Sets every parameter and table from `tensors`, which must hold exactly these names and shapes; values are
    /// converted to the parameters' type. Nothing is set if anything is wrong.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming all missing and unexpected names; [`Error::Shape`] for the first wrong shape.
    pub fn load(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let report = self.difference(tensors);
        if let Some(first) = report.missing.first().or(report.unexpected.first()) {
            return Err(Error::Parameter {
                name: first.clone(),
                problem: format!(
                    "the source does not fit the model: missing [{}], unexpected [{}]",
                    report.missing.join(", "),
                    report.unexpected.join(", ")
                ),
            });
        }
        self.set_all(tensors)
    }

    /// Sets the parameters that `tensors` has and says what did not match; only for sources that are known to be
    /// partial, such as an encoder alone.
    ///
    /// # Errors
    /// [`Error::Shape`] for the first wrong shape; nothing is set then.
    pub fn load_partial(&self, tensors: &HashMap<String, Tensor>) -> Result<LoadReport> {
        self.set_all(tensors)?;
        Ok(self.difference(tensors))
    }

    fn difference(&self, tensors: &HashMap<String, Tensor>) -> LoadReport {
        let missing = self
            .entries
            .iter()
            .filter(|p| !tensors.contains_key(&p.name))
            .map(|p| p.name.clone())
            .collect();
        let mut unexpected: Vec<String> = tensors
            .keys()
            .filter(|name| !self.by_name.contains_key(*name))
            .cloned()
            .collect();
        unexpected.sort();
        LoadReport {
            missing,
            unexpected,
        }
    }

    fn set_all(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let found = || {
            self.entries
                .iter()
                .filter_map(|param| tensors.get(&param.name).map(|tensor| (param, tensor)))
        };
        for (param, tensor) in found() {
            if tensor.dims() != param.var.dims() {
                return Err(Error::Shape {
                    what: param.name.clone(),
                    got: tensor.dims().to_vec(),
                    expected: format!("{:?}", param.var.dims()),
                });
            }
        }
        for (param, tensor) in found() {
            param
                .var
                .set(&tensor.to_dtype(self.dtype)?.to_device(&self.device)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> Params {
        let mut params = Params::new(3, DType::F32, &Device::Cpu);
        params
            .trainable("b.weight", &[4, 3], Init::XavierUniform)
            .unwrap();
        params.trainable("a.bias", &[4], Init::Zeros).unwrap();
        params
            .frozen(
                "pos_embed",
                &Tensor::ones((1, 2, 2), DType::F64, &Device::Cpu).unwrap(),
            )
            .unwrap();
        params
    }

    fn snapshot(params: &Params) -> HashMap<String, Tensor> {
        params
            .iter()
            .map(|p| (p.name.clone(), p.var.as_tensor().copy().unwrap()))
            .collect()
    }

    #[test]
    fn the_first_value_that_is_no_number_is_named() {
        let params = params();
        assert_eq!(params.first_not_finite().unwrap(), None);
        for (name, value) in [
            ("a.bias", f32::MAX),
            ("a.bias", f32::NAN),
            ("b.weight", f32::NEG_INFINITY),
        ] {
            let param = params.iter().find(|param| param.name == name).unwrap();
            let mut values = vec![f32::MIN; param.var.elem_count()];
            values[2] = value;
            let values = Tensor::from_vec(values, param.var.shape(), &Device::Cpu).unwrap();
            param.var.set(&values).unwrap();
            let expected = (!value.is_finite()).then_some(name);
            assert_eq!(params.first_not_finite().unwrap(), expected);
        }
    }

    #[test]
    fn order_is_registration_and_names_are_unique() {
        let mut params = params();
        let names: Vec<&str> = params.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["b.weight", "a.bias", "pos_embed"]);
        assert_eq!(params.counts(), (16, 4));
        assert_eq!(params.iter_trainable().count(), 2);
        assert!(params.trainable("a.bias", &[4], Init::Zeros).is_err());
    }

    #[test]
    fn loading_is_strict_and_all_or_nothing() {
        let params = params();
        let before = snapshot(&params);
        let mut source: HashMap<String, Tensor> = before
            .iter()
            .map(|(name, t)| (name.clone(), (t + 1.0).unwrap()))
            .collect();
        let wrong = Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap();
        let right = source.insert("b.weight".to_owned(), wrong).unwrap();
        assert!(matches!(params.load(&source), Err(Error::Shape { .. })));
        let same = |name: &str| {
            let now = params
                .get(name)
                .unwrap()
                .var
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            now == before[name]
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        };
        assert!(same("a.bias") && same("b.weight"));

        source.insert("b.weight".to_owned(), right.clone());
        source.insert("head.weight".to_owned(), right);
        let message = params.load(&source).unwrap_err().to_string();
        assert!(message.contains("head.weight"), "{message}");
        let report = params.load_partial(&source).unwrap();
        assert_eq!(
            report,
            LoadReport {
                missing: vec![],
                unexpected: vec!["head.weight".to_owned()]
            }
        );
        source.remove("head.weight");
        source.remove("a.bias");
        let message = params.load(&source).unwrap_err().to_string();
        assert!(message.contains("a.bias"), "{message}");
        assert!(!same("b.weight"));
    }

    #[test]
    fn frozen_tables_take_no_gradient_but_follow_a_load() {
        let mut params = Params::new(3, DType::F32, &Device::Cpu);
        let table = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
        let shared = params.frozen("pos_embed", &table).unwrap();
        assert!(!shared.track_op());
        params
            .load(&HashMap::from([(
                "pos_embed".to_owned(),
                (table * 5.0).unwrap(),
            )]))
            .unwrap();
        assert_eq!(shared.to_vec2::<f32>().unwrap(), [[5.0, 5.0]]);
    }

    #[test]
    fn followers_begin_equal_move_by_their_share_and_share_tables() {
        let values = |t: &Tensor| t.to_vec1::<f32>().unwrap();
        let mut params = Params::new(3, DType::F32, &Device::Cpu);
        let layer = |params: &mut Params| params.trainable("w", &[2], Init::Ones);
        layer(&mut params).unwrap();
        let table = Tensor::new(&[5f32], &Device::Cpu).unwrap();
        params.frozen("table", &table).unwrap();
        let (copy, shared) = params
            .following("slow", |params| {
                Ok((layer(params)?, params.frozen("table", &table)?))
            })
            .unwrap();
        assert!(!copy.track_op() && !shared.track_op());
        assert_eq!((values(&copy), values(&shared)), (vec![1.0; 2], vec![5.0]));
        assert_eq!(params.counts(), (2, 3));
        let set = |values: [f32; 2]| {
            let var = &params.get("w").unwrap().var;
            var.set(&Tensor::new(&values, &Device::Cpu).unwrap())
                .unwrap();
        };
        set([3.0, -7.0]);
        assert_eq!(values(&copy), [1.0; 2], "its own memory");
        params.follow(0.75).unwrap();
        assert_eq!(values(&copy), [1.5, -1.0]);
        params.follow(0.0).unwrap();
        assert_eq!(values(&copy), [3.0, -7.0]);
        assert_eq!(
            values(params.get("slow.w").unwrap().var.as_tensor()),
            [3.0, -7.0]
        );

        let wrong = params.following("slow", |params| params.trainable("v", &[2], Init::Ones));
        assert!(wrong.unwrap_err().to_string().contains("followed"));
        let wrong = params.following("other", |params| params.trainable("w", &[3], Init::Ones));
        assert!(matches!(wrong, Err(Error::Shape { .. })));
    }
}
