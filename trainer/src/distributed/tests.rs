//! What ranks do together is what one process does with everything.

use candle_core::{DType, Device, Tensor, Var};

use super::in_threads::on_ranks;
use super::*;
use crate::loss::{Keys, info_nce};
use crate::nn::norm::{BatchNorm, unit_length};
use crate::nn::params::Params;
use crate::optim::Gradients;

const LOCAL: usize = 3;
const WIDTH: usize = 5;

/// Rows of waves, `[n, WIDTH]`.
fn rows(n: usize, phase: f32) -> Tensor {
    let values: Vec<f32> = (0..n * WIDTH)
        .map(|i| (1.7 * i as f32 + phase).sin())
        .collect();
    Tensor::from_vec(values, (n, WIDTH), &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn gap(a: &Tensor, b: &Tensor) -> f32 {
    let pairs = flat(a).into_iter().zip(flat(b));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn ranks_exchange_agree_and_hear_the_first() {
    let heard = on_ranks(3, |ranks| {
        let mine = "x".repeat(ranks.rank());
        let all = ranks.exchange(&mine).unwrap();
        let any = [0, 7].map(|who| ranks.any(ranks.rank() == who).unwrap());
        let said = ranks.from_first(ranks.is_first().then_some(vec![1u32, 2]));
        ranks.agree("step", 5).unwrap();
        let apart = ranks.agree("step", 5 + u64::from(ranks.rank() == 2));
        let share = ranks.share();
        ranks.leave().unwrap();
        (
            all,
            any,
            said.unwrap(),
            apart.unwrap_err().to_string(),
            share,
        )
    });
    for (rank, (all, any, said, apart, share)) in heard.into_iter().enumerate() {
        assert_eq!(all, ["", "x", "xx"]);
        assert_eq!(any, [true, false]);
        assert_eq!(said, Some(vec![1, 2]));
        assert!(apart.contains("step of rank 2 is 6"), "{apart}");
        assert_eq!((share.rank, share.world), (rank as u64, 3));
    }
    assert_eq!(Ranks::single().exchange(&4).unwrap(), [4]);
    assert_eq!(Ranks::single().from_first(Some(4)).unwrap(), Some(4));
}

#[test]
fn a_rank_that_is_gone_is_an_error_and_no_hang() {
    let ranks = on_ranks(1, |ranks| {
        let other = ranks.clone();
        ranks.leave().unwrap();
        other
    });
    let message = ranks[0].start_sum(&rows(1, 0.0)).unwrap().wait();
    assert!(message.unwrap_err().to_string().contains("has ended"));
}

#[test]
fn without_a_library_many_ranks_are_refused() {
    let world = World {
        rank: 1,
        size: 2,
        local_rank: 1,
        local_size: 2,
    };
    assert_eq!(Ranks::join(World::SINGLE, "nonsense").unwrap().size(), 1);
    assert!(matches!(
        Ranks::join(world, "gpu"),
        Err(Error::Device { .. })
    ));
    #[cfg(not(feature = "mpi"))]
    {
        let message = Ranks::join(world, "cpu").unwrap_err().to_string();
        assert!(message.contains("--features mpi"), "{message}");
    }
}

/// Loss and gradient of the contrastive loss behind a batch normalisation, of this rank's share.
fn contrast(ranks: &Ranks, x: &Var) -> (Tensor, Tensor) {
    let mut params = Params::new(1, DType::F32, &Device::Cpu).across(ranks.clone());
    let norm = BatchNorm::new(&mut params, "norm", WIDTH).unwrap();
    let z = unit_length(&norm.forward(x).unwrap()).unwrap();
    let n_local = x.dim(0).unwrap();
    let keys = match ranks.size() {
        1 => Keys::local(z.clone()),
        _ => Keys::gathered(ranks.gather_rows(&z).unwrap(), ranks.rank(), n_local),
    };
    let queries = unit_length(&z.sin().unwrap()).unwrap();
    let loss = info_nce(&queries, &keys, 0.3).unwrap();
    let share = (&loss / ranks.size() as f64).unwrap();
    let gradient = share.backward().unwrap().remove(x).unwrap();
    (share, gradient)
}

#[test]
fn contrast_and_batch_norm_over_ranks_are_those_of_the_whole_batch() {
    for size in [2, 4] {
        let all = rows(size * LOCAL, 0.4);
        let whole = Var::from_tensor(&all).unwrap();
        let (loss, gradient) = contrast(&Ranks::single(), &whole);
        assert!(flat(&gradient).iter().any(|g| g.abs() > 1e-2));
        let parts = on_ranks(size, |ranks| {
            let mine = all.narrow(0, ranks.rank() * LOCAL, LOCAL).unwrap();
            contrast(&ranks, &Var::from_tensor(&mine.copy().unwrap()).unwrap())
        });
        let (shares, gradients): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let sum = Tensor::stack(&shares, 0).unwrap().sum_all().unwrap();
        assert!(gap(&sum, &loss) < 1e-6, "{size} ranks: {sum} {loss}");
        let apart = gap(&Tensor::cat(&gradients, 0).unwrap(), &gradient);
        assert!(apart < 1e-6, "{size} ranks: {apart}");
    }
}

#[test]
fn buckets_sum_every_gradient_in_whatever_order_they_become_final() {
    let sizes = [4, 1, 3, 6];
    let sums = |order: &[usize], unreached: usize| {
        on_ranks(2, |ranks| {
            let vars = sizes.map(|n| Var::ones(n, DType::F32, &Device::Cpu).unwrap());
            let named = vars.iter().enumerate();
            let named = named.map(|(i, var)| (format!("p{i}"), var.clone()));
            let mut grads = Gradients::new(named);
            let terms: Vec<Tensor> = (0..sizes.len())
                .filter(|i| *i != unreached)
                .map(|i| vars[i].as_tensor() * (10.0 * (ranks.rank() + 1) as f64 + i as f64))
                .map(|term| term.unwrap().sum_all().unwrap())
                .collect();
            let loss = Tensor::stack(&terms, 0).unwrap().sum_all().unwrap();
            grads.accumulate(loss.backward().unwrap()).unwrap();
            let name = |i: usize| format!("p{i}");
            let named = sizes.iter().enumerate().map(|(i, &size)| (name(i), size));
            let mut buckets = Buckets::with_limit(&ranks, named, 5);
            for _ in 0..2 {
                // A step after a step: the plan starts anew.
                let mut of_step = grads.clone();
                for &index in order {
                    let grad = of_step.get(&name(index)).unwrap();
                    buckets.ready(&name(index), grad).unwrap();
                }
                buckets.finish(&mut of_step).unwrap();
                let found = (0..sizes.len()).map(|i| of_step.get(&name(i)).map(flat));
                let found: Vec<_> = found.collect();
                for (i, got) in found.iter().enumerate() {
                    let want = (i != unreached).then(|| vec![30.0 + 2.0 * i as f32; sizes[i]]);
                    assert_eq!(*got, want, "{order:?} p{i}");
                }
            }
        })
    };
    for order in [&[][..], &[3, 2, 1, 0], &[0, 1, 2, 3], &[2, 3]] {
        sums(order, usize::MAX);
    }
    sums(&[3, 2, 0], 1);
}
