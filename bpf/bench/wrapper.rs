//! `repeat` of a test run feeds the packet that the program left to the next run: this program puts it back first, takes
//! the next source port, and calls the program under test, which is not changed for that.

use aya_ebpf::{
    EbpfContext as _,
    btf_maps::{Array, ProgramArray},
    helpers::bpf_skb_change_tail,
    macros::btf_map,
    programs::TcContext,
};

/// The packet as it is to be, its length, and whose turn it is. User space writes this as 72 bytes.
#[repr(C)]
pub struct Template {
    headers: [u64; 8],
    length: u16,
    first_port: u16,
    ports: u16,
    /// Counted up here.
    turn: u16,
}

#[btf_map]
static TEMPLATE: Array<Template, 1> = Array::new();
#[btf_map]
static TARGET: ProgramArray<1> = ProgramArray::new();

const HEADERS: usize = 64;
const SOURCE_PORT: usize = 14 + 20;

/// Only comes back when the program can't be called.
#[inline(always)]
pub fn run(ctx: &TcContext) {
    let Some(template) = TEMPLATE.get_ptr_mut(0) else { return };
    // SAFETY: an array's element; one test run at a time.
    let template = unsafe { &mut *template };
    let length = u32::from(template.length);
    // SAFETY: plain numbers.
    if ctx.len() != length && unsafe { bpf_skb_change_tail(ctx.as_ptr().cast(), length, 0) } != 0 {
        return;
    }
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + HEADERS > end {
        return;
    }
    let turn = template.turn;
    template.turn = if turn + 1 == template.ports { 0 } else { turn + 1 };
    let port = template.first_port + turn;
    // SAFETY: checked above.
    unsafe {
        let headers = data as *mut u64;
        for word in 0..HEADERS / 8 {
            *headers.add(word) = template.headers[word];
        }
        *((data + SOURCE_PORT) as *mut u16) = port.to_be();
        let meta = ctx.skb.skb;
        (*meta).mark = 0;
        // Each word by itself: together they become a call of `memset`, which may not write there.
        for word in 0..5 {
            core::ptr::write_volatile(&raw mut (*meta).cb[word], 0);
        }
        TARGET.tail_call(ctx, 0);
    }
}
