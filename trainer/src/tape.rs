//! The order in which a step computed, so that its backward pass can undo it piece by piece.
//!
//! candle's own backward pass keeps every activation until the loss is dropped, hands out all gradients at the end, and
//! writes and adds zeros before each first gradient. This one walks a list of what was computed from the last piece to
//! the first and drops each piece as soon as it is done: activations are freed on the way, a parameter's gradient is
//! handed out the moment that its last contribution is in, and a first gradient is moved, not added.
//!
//! Inside [`record`] the operations of [`crate::ops`] put themselves on the thread's tape instead of into candle's
//! graph. What is no such operation has to be named: [`composed`] runs any composition of candle's operations as one
//! piece. **A candle operation outside of both on a tensor of the tape cuts the gradient**, which the tests of the models
//! compare with candle's own for every method.
//!
//! Sums run in the order of the tape, so a gradient does not depend on threads or timing.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Shape, Tensor,
    TensorId, Var,
};

use crate::error::Result;
use crate::ops;

thread_local! {
    static CURRENT: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// What one forward pass computed.
#[derive(Default)]
pub struct Tape {
    pieces: Vec<Piece>,
    /// Results on the tape (or inputs given to it) that gradients flow to.
    tracked: HashSet<TensorId>,
    /// Pieces that a parameter still waits for.
    pending: HashMap<TensorId, usize>,
}

/// From the gradient of a result to those of what it was made from.
type Backward = Box<dyn FnOnce(&Tensor) -> Result<Vec<(TensorId, Tensor)>>>;

/// One operation, or several that are undone together.
struct Piece {
    output: TensorId,
    /// The parameters that it uses, each once, in an order that is the same in every run.
    params: Vec<TensorId>,
    backward: Backward,
    /// Whether the gradients that it gives may be held by something else, too.
    shares: bool,
}

/// Runs a forward pass and returns its result beside its tape.
///
/// # Errors
/// Whatever `f` reports.
pub fn record<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Tape)> {
    record_from(&[], f)
}

/// As [`record`], with tensors that gradients are wanted of although they are no parameters.
fn record_from<T>(inputs: &[Tensor], f: impl FnOnce() -> Result<T>) -> Result<(T, Tape)> {
    let mut tape = Tape::default();
    tape.tracked.extend(inputs.iter().map(Tensor::id));
    let outer = CURRENT.replace(Some(tape));
    let result = f();
    let tape = CURRENT.replace(outer).unwrap_or_default();
    Ok((result?, tape))
}

/// Whether this thread records.
pub fn is_recording() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// Whether a gradient of this tensor is wanted: it is a parameter, or made from one.
pub(crate) fn is_tracked(tensor: &Tensor) -> bool {
    tensor.track_op() || on_tape(tensor)
}

/// Runs `f` as if nothing was recorded.
fn suspended<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    let tape = CURRENT.take();
    let result = f();
    CURRENT.set(tape);
    result
}

/// Puts a piece on the tape whose backward pass gives one gradient (or none) for each of `inputs`.
pub(crate) fn push(
    output: &Tensor,
    inputs: &[&Tensor],
    shares: bool,
    backward: impl FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>> + 'static,
) {
    if !inputs.iter().any(|input| is_tracked(input)) {
        return;
    }
    inputs.iter().for_each(|input| push_derived(input));
    let params = inputs.iter().filter(|input| input.is_variable());
    let params = without_repeats(params.map(|input| input.id()));
    let ids: Vec<Option<TensorId>> = inputs
        .iter()
        .map(|input| is_tracked(input).then(|| input.id()))
        .collect();
    let backward = move |dy: &Tensor| {
        let gradients = ids.into_iter().zip(backward(dy)?);
        Ok(gradients
            .filter_map(|(id, gradient)| Some((id?, gradient?)))
            .collect())
    };
    push_piece(output, params, shares, Box::new(backward));
}

fn without_repeats(ids: impl Iterator<Item = TensorId>) -> Vec<TensorId> {
    let mut seen = HashSet::new();
    ids.filter(|id| seen.insert(*id)).collect()
}

/// A view of a parameter, or anything else that candle's graph holds, is a piece of its own: candle carries its gradient
/// on to the parameters.
fn push_derived(input: &Tensor) {
    if input.is_variable() || !input.track_op() || on_tape(input) {
        return;
    }
    let params = parameters_of(input);
    let ids = params.iter().map(|param| param.id()).collect();
    let derived = input.clone();
    let backward = move |dy: &Tensor| {
        let mut store = seeded(&derived, dy)?.backward()?;
        let gradient = |param: &Tensor| Some((param.id(), store.remove(param)?));
        Ok(params.iter().filter_map(gradient).collect())
    };
    push_piece(input, ids, false, Box::new(backward));
}

fn on_tape(tensor: &Tensor) -> bool {
    CURRENT.with_borrow(|tape| {
        tape.as_ref()
            .is_some_and(|tape| tape.tracked.contains(&tensor.id()))
    })
}

fn push_piece(output: &Tensor, params: Vec<TensorId>, shares: bool, backward: Backward) {
    CURRENT.with_borrow_mut(|tape| {
        let Some(tape) = tape else { return };
        for param in &params {
            *tape.pending.entry(*param).or_default() += 1;
        }
        tape.tracked.insert(output.id());
        tape.pieces.push(Piece {
            output: output.id(),
            params,
            backward,
            shares,
        });
    });
}

/// The variables that candle's graph leads to from here.
fn parameters_of(tensor: &Tensor) -> Vec<Tensor> {
    let nodes = tensor.sorted_nodes().into_iter();
    nodes.filter(|node| node.is_variable()).cloned().collect()
}

/// Applies an operation with its own backward pass, on the tape or in candle's graph.
pub(crate) fn apply1<C>(x: &Tensor, op: C) -> Result<Tensor>
where
    C: 'static + CustomOp1 + Send + Sync,
{
    if !is_recording() {
        return Ok(x.apply_op1(op)?);
    }
    let y = x.apply_op1_no_bwd(&op)?;
    let saved = x.clone();
    push(&y, &[x], false, move |dy| {
        Ok(vec![op.bwd(&saved, &no_result(dy)?, dy)?])
    });
    Ok(y)
}

/// As [`apply1`], of two tensors.
///
/// * `shares`: whether the operation's backward pass gives its upstream gradient on as it is.
pub(crate) fn apply2<C>(a: &Tensor, b: &Tensor, shares: bool, op: C) -> Result<Tensor>
where
    C: 'static + CustomOp2 + Send + Sync,
{
    if !is_recording() {
        return Ok(a.apply_op2(b, op)?);
    }
    let y = a.apply_op2_no_bwd(b, &op)?;
    let (a_saved, b_saved) = (a.clone(), b.clone());
    push(&y, &[a, b], shares, move |dy| {
        let (da, db) = op.bwd(&a_saved, &b_saved, &no_result(dy)?, dy)?;
        Ok(vec![da, db])
    });
    Ok(y)
}

/// As [`apply1`], of three tensors.
pub(crate) fn apply3<C>(a: &Tensor, b: &Tensor, c: &Tensor, op: C) -> Result<Tensor>
where
    C: 'static + CustomOp3 + Send + Sync,
{
    if !is_recording() {
        return Ok(a.apply_op3(b, c, op)?);
    }
    let y = a.apply_op3_no_bwd(b, c, &op)?;
    let (a_saved, b_saved, c_saved) = (a.clone(), b.clone(), c.clone());
    push(&y, &[a, b, c], false, move |dy| {
        let (da, db, dc) = op.bwd(&a_saved, &b_saved, &c_saved, &no_result(dy)?, dy)?;
        Ok(vec![da, db, dc])
    });
    Ok(y)
}

/// What stands where candle hands a backward pass the operation's result. None here looks at it, so that results which
/// nothing else needs are freed during the forward pass; one that did would get a tensor of the wrong shape.
fn no_result(dy: &Tensor) -> Result<Tensor> {
    Ok(Tensor::zeros(0, dy.dtype(), &Device::Cpu)?)
}

/// A sum whose gradient is the upstream one for both.
pub(crate) fn sum(a: &Tensor, b: &Tensor, add: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    let y = add()?;
    if is_recording() {
        push(&y, &[a, b], true, |dy| {
            Ok(vec![Some(dy.clone()), Some(dy.clone())])
        });
    }
    Ok(y)
}

/// Runs a composition of candle's operations as one piece. `f` gets `inputs`; the parameters that it uses beside them
/// get their gradients too.
///
/// # Errors
/// Whatever `f` reports.
pub fn composed(inputs: &[&Tensor], f: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Tensor> {
    if !is_recording() {
        let inputs: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
        return f(&inputs);
    }
    // A copy of what the tape tracks, where candle's graph ends.
    let leaf = |input: &&Tensor| match on_tape(input) && !input.track_op() {
        true => Ok(Var::from_tensor(input)?.into_inner()),
        false => Ok((*input).clone()),
    };
    let leaves = inputs.iter().map(leaf).collect::<Result<Vec<_>>>()?;
    let y = suspended(|| f(&leaves))?;
    let result = y.detach();
    if !y.track_op() {
        return Ok(result);
    }
    let origins: HashMap<TensorId, TensorId> = leaves
        .iter()
        .zip(inputs)
        .map(|(leaf, input)| (leaf.id(), input.id()))
        .collect();
    let ends = parameters_of(&y);
    let params = ends
        .iter()
        .map(Tensor::id)
        .filter(|id| origins.get(id).is_none_or(|origin| origin == id))
        .collect();
    let backward = move |dy: &Tensor| {
        let mut store = seeded(&y, dy)?.backward()?;
        let gradient = |end: &Tensor| {
            let receiver = origins.get(&end.id()).copied().unwrap_or(end.id());
            Some((receiver, store.remove(end)?))
        };
        Ok(ends.iter().filter_map(gradient).collect())
    };
    push_piece(&result, params, false, Box::new(backward));
    Ok(result)
}

/// Runs `f` without keeping what it computes on the way: the backward pass computes it again. `f` must give the same
/// bits each time.
///
/// # Errors
/// Whatever `f` reports.
pub fn checkpointed(
    inputs: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
) -> Result<Tensor> {
    let inputs: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
    if !is_recording() {
        return f(&inputs);
    }
    inputs.iter().for_each(push_derived);
    let tracked: Vec<Tensor> = inputs
        .iter()
        .filter(|input| is_tracked(input))
        .cloned()
        .collect();
    let (y, tape) = record_from(&tracked, || f(&inputs))?;
    let used = without_repeats(
        tape.pieces
            .iter()
            .rev()
            .flat_map(|piece| piece.params.clone()),
    );
    drop(tape);
    let precision = ops::precision();
    let backward = move |dy: &Tensor| {
        let (y, tape) = ops::with_precision(precision, || record_from(&tracked, || f(&inputs)))?;
        let mut gradients = Vec::new();
        let rest = tape.run(&y, dy.clone(), &mut |id, gradient| {
            gradients.push((id, gradient));
            Ok(())
        })?;
        gradients.extend(rest);
        Ok(gradients)
    };
    push_piece(&y, used, true, Box::new(backward));
    Ok(y)
}

impl Tape {
    /// Walks back from `loss`, a scalar, whose gradient is `factor`, and gives each parameter's gradient to `ready` as
    /// soon as it is final. Parameters that the loss does not depend on are not mentioned.
    ///
    /// # Errors
    /// Whatever an operation or `ready` reports.
    pub fn backward(
        self,
        loss: &Tensor,
        factor: f64,
        ready: &mut dyn FnMut(TensorId, Tensor) -> Result<()>,
    ) -> Result<()> {
        let seed = Tensor::full(factor, loss.shape(), loss.device())?.to_dtype(loss.dtype())?;
        self.run(loss, seed, ready).map(|_| ())
    }

    /// Returns the gradients of what is neither a parameter nor a result.
    fn run(
        mut self,
        from: &Tensor,
        seed: Tensor,
        ready: &mut dyn FnMut(TensorId, Tensor) -> Result<()>,
    ) -> Result<HashMap<TensorId, Tensor>> {
        let mut gradients = HashMap::from([(from.id(), seed)]);
        while let Some(piece) = self.pieces.pop() {
            if let Some(dy) = gradients.remove(&piece.output) {
                for (id, gradient) in (piece.backward)(&dy)? {
                    let sum = match gradients.remove(&id) {
                        None => gradient,
                        Some(sum) if piece.shares => (sum + gradient)?,
                        Some(sum) => ops::add_into(gradient, &sum)?,
                    };
                    gradients.insert(id, sum);
                }
            }
            for param in piece.params {
                let Some(pending) = self.pending.get_mut(&param) else {
                    continue;
                };
                *pending -= 1;
                if *pending == 0
                    && let Some(gradient) = gradients.remove(&param)
                {
                    ready(param, gradient)?;
                }
            }
        }
        Ok(gradients)
    }
}

/// A scalar whose backward pass gives `tensor` the gradient `dy`.
fn seeded(tensor: &Tensor, dy: &Tensor) -> Result<Tensor> {
    Ok(tensor.apply_op1(Seed { dy: dy.clone() })?)
}

struct Seed {
    dy: Tensor,
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn cuda_fwd(
        &self,
        storage: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let scalar = Shape::from(());
        let zero = storage.device().zeros_impl(&scalar, DType::F32)?;
        Ok((zero, scalar))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.dy.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::error::Error;
    use crate::masking::StepRandomness;
    use crate::nn::dropout::KeepMask;
    use pipeline::rng::Purpose;

    fn var(values: &[f32]) -> Var {
        Var::new(values, &Device::Cpu).unwrap()
    }

    fn product(x: &Tensor, w: &Var) -> Result<Tensor> {
        composed(&[x, w], |t| Ok((&t[0] * &t[1])?))
    }

    fn values(gradient: &Tensor) -> Vec<f32> {
        gradient.to_vec1().unwrap()
    }

    #[test]
    fn a_parameter_is_ready_once_when_its_last_use_is_in() {
        let (shared, late, idle) = (var(&[2.0, 3.0]), var(&[5.0, 7.0]), var(&[1.0, 1.0]));
        let x = Tensor::new(&[1f32, 1.0], &Device::Cpu).unwrap();
        let (y, tape) = record(|| {
            let once = product(&x, &shared)?;
            product(&once, &idle)?; // nothing comes of it
            let twice = product(&once, &shared)?;
            let y = product(&twice, &late)?;
            ops::add(&y, &once, None)
        })
        .unwrap();
        assert_eq!(values(&y), [22.0, 66.0]);
        let mut given = Vec::new();
        tape.backward(&y, 2.0, &mut |id, gradient| {
            given.push((id, values(&gradient)));
            Ok(())
        })
        .unwrap();
        // y = s^2 l + s, so dy/dl = s^2 and dy/ds = 2 s l + 1, each times 2.
        assert_eq!(given[0], (late.id(), vec![8.0, 18.0]));
        assert_eq!(given[1], (shared.id(), vec![42.0, 86.0]));
        assert_eq!(given.len(), 2, "idle has no gradient");
    }

    #[test]
    fn pieces_are_dropped_on_the_way() {
        let (early, late) = (var(&[2.0]), var(&[3.0]));
        let held = Arc::new(());
        let (y, tape) = record(|| {
            let x = product(&Tensor::new(&[1f32], &Device::Cpu)?, &early)?;
            let (late, held) = (late.clone(), held.clone());
            checkpointed(&[&x], move |t| {
                let _held = &held;
                product(&t[0], &late)
            })
        })
        .unwrap();
        assert_eq!(Arc::strong_count(&held), 2);
        let mut left = Vec::new();
        tape.backward(&y, 1.0, &mut |id, gradient| {
            left.push((id, values(&gradient), Arc::strong_count(&held)));
            Ok(())
        })
        .unwrap();
        assert_eq!(
            left,
            [(late.id(), vec![2.0], 1), (early.id(), vec![3.0], 1)]
        );
    }

    #[test]
    fn a_gradient_that_two_hold_is_not_added_to_in_place() {
        let step = StepRandomness {
            seed: 1,
            epoch: 0,
            samples: vec![0, 1],
        };
        let all = KeepMask::draw(&step, Purpose::Dropout, "test", 1, 0.0).unwrap();
        let (x, branch) = (var(&[2.0, 3.0]), var(&[5.0, 7.0]));
        let (bias, scale) = (var(&[1.0, 1.0]), var(&[10.0, 20.0]));
        let (y, tape) = record(|| {
            let sum = ops::add(&x, &branch, Some(&all))?;
            let sum = ops::add(&sum, &bias, None)?;
            ops::add(&product(&sum, &scale)?, &x, None)
        })
        .unwrap();
        let mut given = HashMap::new();
        tape.backward(&y, 1.0, &mut |id, gradient| {
            given.insert(id, gradient);
            Ok(())
        })
        .unwrap();
        assert_eq!(values(&given[&bias.id()]), [10.0, 20.0]);
        assert_eq!(values(&given[&branch.id()]), [10.0, 20.0]);
        assert_eq!(values(&given[&x.id()]), [11.0, 21.0]);
    }

    #[test]
    fn errors_end_the_recording_and_the_way_back() {
        let failed = record(|| -> Result<()> { Err(Error::Config("wrong".to_owned())) });
        assert!(failed.is_err() && !is_recording());
        let w = var(&[2.0]);
        let x = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        let (y, tape) = record(|| product(&x, &w)).unwrap();
        let stopped = tape.backward(&y, 1.0, &mut |_, _| Err(Error::Config("stop".to_owned())));
        assert!(stopped.unwrap_err().to_string().contains("stop"));
    }
}
