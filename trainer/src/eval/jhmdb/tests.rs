use super::*;

const GRID: Size = Size {
    height: 6,
    width: 8,
};

fn square() -> [[f64; 2]; N_JOINTS] {
    // corners of a box of 30 x 40, so that a person's size is 0.6 * 50
    std::array::from_fn(|j| [(j % 2 * 30) as f64, (j / 2 % 2 * 40) as f64])
}

#[test]
fn blobs_are_four_patches_wide_and_peak_on_a_patch() {
    let blob = blob([4.3, 3.0], GRID, &JhmdbSettings::default());
    let xs: Vec<usize> = blob.iter().map(|(at, _)| at % GRID.width).collect();
    assert_eq!((xs.iter().min(), xs.iter().max()), (Some(&2), Some(&5)));
    let peak = blob.iter().find(|(_, value)| *value == 1.0).unwrap();
    assert_eq!(peak.0, 3 * GRID.width + 4);
    let beside = blob
        .iter()
        .find(|(at, _)| *at == 3 * GRID.width + 5)
        .unwrap();
    assert!((beside.1 - (-2f32).exp()).abs() < 1e-7);
}

#[test]
fn blobs_left_of_the_picture_move_into_it_or_stay() {
    let at = |rounding| {
        let settings = JhmdbSettings {
            rounding,
            ..JhmdbSettings::default()
        };
        let blob = blob([0.7, 3.0], GRID, &settings);
        let peak = blob.into_iter().find(|(_, value)| *value == 1.0);
        peak.map(|(at, _)| at % GRID.width)
    };
    assert_eq!(at(Rounding::TowardsZero), Some(2));
    assert_eq!(at(Rounding::Down), Some(1));
    assert!(blob([-9.0, 3.0], GRID, &JhmdbSettings::default()).is_empty());
    assert!(blob([99.0, 3.0], GRID, &JhmdbSettings::default()).is_empty());
}

#[test]
fn a_joint_comes_back_where_it_was_put() {
    let mut labels = vec![0f32; GRID.area() * (1 + N_JOINTS)];
    for (at, value) in blob([4.0, 3.0], GRID, &JhmdbSettings::default()) {
        labels[at * (1 + N_JOINTS) + 1 + 2] = value;
    }
    let joints = joints_of(&labels, GRID, 5);
    let [x, y] = joints[2].unwrap();
    assert!((x - 4.0).abs() < 1e-6 && (y - 3.0).abs() < 1e-6, "{x} {y}");
    assert_eq!(joints[0], None);
}

#[test]
fn lost_joints_are_left_out_or_missed() {
    let truth = square();
    let mut predicted = truth.map(Some);
    predicted[0] = None;
    let pck = |lost_joints| {
        let settings = JhmdbSettings {
            lost_joints,
            ..JhmdbSettings::default()
        };
        let mut counts = JointCounts::new();
        counts.add(&truth, &predicted, &settings);
        counts.pck().unwrap()
    };
    assert_eq!(pck(LostJoints::LeftOut), [100.0; 5]);
    let missed = 100.0 * 14.0 / 15.0;
    assert!(
        pck(LostJoints::Missed)
            .iter()
            .all(|p| (p - missed).abs() < 1e-9)
    );
}

#[test]
fn distances_are_shares_of_the_persons_size() {
    let truth = square();
    let mut predicted = truth.map(Some);
    // 4 px of 30: within 0.2 and not within 0.1
    predicted[3] = Some([truth[3][0] + 4.0, truth[3][1]]);
    let mut counts = JointCounts::new();
    counts.add(&truth, &predicted, &JhmdbSettings::default());
    assert_eq!(
        (counts.near[0][3], counts.near[1][3], counts.all[3]),
        (0, 1, 1)
    );
    assert_eq!(JointCounts::new().pck(), None);
}
