//! Columns as Go's text/tabwriter aligns them with docker's settings: cells end with a tab, a column is as wide as its
//! widest cell plus three spaces and at least ten, and a column ends where a line has no such cell.

/// Least width of a column, with its padding.
const MIN_WIDTH: usize = 10;
const PADDING: usize = 3;

/// `text` with its tabs turned into aligned columns.
pub(crate) fn align(text: &str) -> String {
    align_with(text, MIN_WIDTH, PADDING)
}

/// The same with another least width and padding.
pub(crate) fn align_with(text: &str, min_width: usize, padding: usize) -> String {
    let lines: Vec<Vec<&str>> = text.split('\n').map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|cells| vec![0; cells.len() - 1]).collect();
    for (index, cells) in lines.iter().enumerate() {
        for column in 0..cells.len() - 1 {
            if widths[index][column] == 0 {
                set_block_width(&lines, &mut widths, (index, column), (min_width, padding));
            }
        }
    }
    joined(&lines, &widths)
}

/// Gives the block of consecutive lines that have a terminated cell in `column` its common width.
fn set_block_width(
    lines: &[Vec<&str>],
    widths: &mut [Vec<usize>],
    (first, column): (usize, usize),
    (min_width, padding): (usize, usize),
) {
    let end = (first..lines.len()).find(|&line| lines[line].len() <= column + 1).unwrap_or(lines.len());
    let widest = lines[first..end].iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let width = (widest + padding).max(min_width);
    for line in &mut widths[first..end] {
        line[column] = width;
    }
}

fn joined(lines: &[Vec<&str>], widths: &[Vec<usize>]) -> String {
    let mut text = String::new();
    for (index, cells) in lines.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        for (column, cell) in cells.iter().enumerate() {
            text.push_str(cell);
            if let Some(width) = widths[index].get(column) {
                text.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_at_least_ten_wide_with_three_spaces() {
        assert_eq!(
            align("ID\tNAME\tX\n0123456789ab\tweb\ty\n"),
            "ID             NAME      X\n0123456789ab   web       y\n"
        );
    }

    #[test]
    fn a_line_without_the_cell_ends_the_column() {
        assert_eq!(align("a\tb\nplain\nlonger than ten\tc"), "a         b\nplain\nlonger than ten   c");
    }

    #[test]
    fn width_counts_characters() {
        assert_eq!(align("ééééééééééé\tx"), "ééééééééééé   x");
    }
}
